//! `crictl-tests`: prepares and runs the tests from outside.
use anyhow::Result;

fn main() -> Result<()> {
    crictl_tests::prepare::all()
}
