//! `crisp exec`.

use std::process::ExitCode;

use crisp_proto::cri;

use super::client::Client;
use super::error::{CliError, EXIT_TIMED_OUT, Result};
use super::{ExecArgs, output, pods};

pub(super) async fn exec(mut client: Client, args: &ExecArgs) -> Result<ExitCode> {
    let pod = pods::find(&mut client, &args.pod).await?;
    let containers = pods::containers(&mut client, &pod.id).await?;
    let container = pods::choose_container(&containers, args.container.as_deref())?;
    let request = cri::ExecSyncRequest {
        container_id: container.id.clone(),
        cmd: args.command.clone(),
        timeout: args.timeout.unwrap_or(0).into(),
    };
    let doing = format!("run {} in {}/{}", args.command[0], pods::full_name(&pod), pods::name(container));
    let answer = client.runtime.exec_sync(request).await;
    if let Err(status) = &answer
        && args.timeout.is_some()
        && status.code() == tonic::Code::DeadlineExceeded
    {
        output::err_line(&format!("crisp: {doing}: {}", status.message()))?;
        return Err(CliError::Exit(EXIT_TIMED_OUT));
    }
    let answer = answer.map_err(CliError::rpc(doing))?.into_inner();
    output::bytes(&answer.stdout)?;
    output::err_bytes(&answer.stderr)?;
    Ok(u8::try_from(answer.exit_code).unwrap_or(u8::MAX).into())
}
