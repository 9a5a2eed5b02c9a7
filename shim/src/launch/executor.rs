//! The part of init that is ours inside libcontainer's: called once the container's filesystem, user and descriptors stand.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use crisp_sys::clone::end_now;
use libcontainer::workload::{
    Executor as LibExecutor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use oci_spec::runtime::{PosixRlimit, Spec};
use rustix::mount::MountPropagationFlags;

use super::covers::Cover;
use super::hierarchies::Hierarchies;
use super::init::CODE_NOT_STARTED;
use super::spec::Plan;
use crate::control;
use crate::error::{Error, Result, Step as _, chain};
use crate::process::{self, Confinement, Executable, OpenLabel};

/// What init still has to do; libcontainer wants it cloneable.
#[derive(Clone)]
pub(super) struct Executor(Rc<Work>);

struct Work {
    control: OwnedFd,
    cwd: PathBuf,
    rlimits: Vec<PosixRlimit>,
    covers: Rc<Vec<Cover>>,
    propagation: Vec<(PathBuf, MountPropagationFlags)>,
    hierarchies: Rc<Option<Hierarchies>>,
    confinement: Confinement,
    executable: RefCell<Executable>,
}

impl Executor {
    pub(super) fn new(plan: &Plan, control: BorrowedFd<'_>, label: Option<OpenLabel>) -> Result<Self> {
        Ok(Self(Rc::new(Work {
            control: control.try_clone_to_owned().step(|| "duplicate the control socket")?,
            cwd: plan.process.cwd().clone(),
            rlimits: plan.process.rlimits().clone().unwrap_or_default(),
            covers: Rc::clone(&plan.covers),
            propagation: plan.propagation.clone(),
            hierarchies: Rc::clone(&plan.hierarchies),
            confinement: Confinement::new(&plan.process, plan.filter.clone()),
            executable: RefCell::new(Executable::new(&plan.process, label)?),
        })))
    }
}

impl LibExecutor for Executor {
    /// Called with the container's user but still all capabilities. Finishes the container, gives up what its program does not get
    /// (a created container may wait for long), and waits for the start.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        let failed = |text: String| ExecutorValidationError::ArgValidationError(text);
        self.0.finish().map_err(|error| failed(chain(&error)))?;
        control::send_ready(self.0.control.as_fd())
            .map_err(|error| failed(format!("report ready: {error}")))?;
        if control::wait_for_go(self.0.control.as_fd()) {
            return Ok(());
        }
        Err(failed("the shim is gone".into()))
    }

    /// The environment of this process is never used: the program gets its own. Only the user's home is taken from what
    /// libcontainer found in the container's `/etc/passwd`.
    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        if let Some(home) = envs.get("HOME") {
            self.0.executable.borrow_mut().default_variable("HOME", home);
        }
        Ok(())
    }

    /// Does not return: what libcontainer holds is closed by then and must not be dropped.
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let error = self.0.execute();
        control::send_failed(self.0.control.as_fd(), &chain(&error));
        end_now(CODE_NOT_STARTED)
    }
}

impl Work {
    /// Replaces the calling program; returns only the error.
    fn execute(&self) -> Error {
        let executable = self.executable.borrow();
        let ready =
            executable.close_others(&[self.control.as_fd()]).and_then(|()| self.confinement.complete());
        match ready {
            Ok(()) => executable.exec(),
            Err(error) => error,
        }
    }

    fn finish(&self) -> Result<()> {
        process::raise_permitted()?;
        self.covers.iter().try_for_each(Cover::attach)?;
        for (target, propagation) in &self.propagation {
            rustix::mount::mount_change(target, *propagation)
                .step(|| format!("set the propagation of {}", target.display()))?;
        }
        if let Some(hierarchies) = &*self.hierarchies {
            hierarchies.attach()?;
        }
        process::enter_cwd(&self.cwd)?;
        process::set_rlimits(&self.rlimits)?;
        self.confinement.begin()
    }
}
