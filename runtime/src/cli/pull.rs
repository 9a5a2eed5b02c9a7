//! Images: what brings them here, with progress.

use crisp_proto::admin::{self, image_progress::Event};
use crisp_proto::cri;

use super::client::Client;
use super::error::{CliError, Result};
use super::manifest::{PlannedImage, PullPolicy};
use super::ui::{PullBar, Ui};

/// Makes an image present as its policy says.
///
/// # Errors
/// When it is not here and may not or cannot be pulled.
pub(crate) async fn ensure(client: &mut Client, image: &PlannedImage, ui: Ui) -> Result<()> {
    let reference = &image.reference;
    let present = client.image(reference).await?;
    match (image.policy, present) {
        (PullPolicy::Never, None) => {
            Err(CliError::Invalid(format!("image {reference} is not here, and imagePullPolicy is Never")))
        }
        (PullPolicy::Never | PullPolicy::IfNotPresent, Some(_)) => {
            ui.step("image", &format!("{reference} is here"))
        }
        (PullPolicy::IfNotPresent, None) => {
            pull(client, reference, &Credentials::default(), ui).await.map(drop)
        }
        (PullPolicy::Always, present) => {
            let pulled = pull(client, reference, &Credentials::default(), ui).await;
            if pulled.is_err() && present.is_some() {
                ui.warn(&format!("{reference} is here already; imagePullPolicy: IfNotPresent would use it"))?;
            }
            pulled.map(drop)
        }
    }
}

/// For a registry that wants them; empty is anonymous.
#[derive(Debug, Default)]
pub(crate) struct Credentials {
    pub(crate) username: String,
    pub(crate) password: String,
}

/// Pulls an image, shows the progress and prints one line about it.
///
/// # Errors
/// Of the daemon.
pub(crate) async fn pull(
    client: &mut Client,
    reference: &str,
    credentials: &Credentials,
    ui: Ui,
) -> Result<Vec<admin::ImageSummary>> {
    let request = admin::PullImageRequest {
        reference: reference.to_owned(),
        username: credentials.username.clone(),
        password: credentials.password.clone(),
    };
    let bar = ui.pull(reference);
    // The message names the image.
    let doing = "pull";
    let started = client.admin.pull_image(request).await.map_err(CliError::rpc(doing));
    let images = match started {
        Ok(stream) => follow(stream.into_inner(), doing, bar, ui, reference).await?,
        Err(error) if error.is_unimplemented() => plain_pull(client, reference, credentials, bar, ui).await?,
        Err(error) => return Err(error),
    };
    Ok(images)
}

/// Imports an archive and prints one line for each image in it.
///
/// # Errors
/// Of the daemon.
pub(crate) async fn import(
    client: &mut Client,
    request: admin::ImportImageRequest,
    ui: Ui,
) -> Result<Vec<admin::ImageSummary>> {
    let path = request.path.clone();
    let doing = format!("import {path}");
    let stream = client.admin.import_image(request).await.map_err(CliError::rpc(&doing))?.into_inner();
    follow(stream, &doing, ui.pull(&path), ui, &path).await
}

async fn follow(
    mut stream: tonic::Streaming<admin::ImageProgress>,
    doing: &str,
    mut bar: PullBar,
    ui: Ui,
    subject: &str,
) -> Result<Vec<admin::ImageSummary>> {
    let mut done = None;
    while let Some(progress) = stream.message().await.map_err(CliError::rpc(doing))? {
        match progress.event {
            Some(Event::Resolved(resolved)) => bar.resolved(resolved)?,
            Some(Event::Layer(layer)) => bar.layer(layer),
            Some(Event::Done(images)) => done = Some(images.images),
            // A newer daemon's event.
            None => {}
        }
    }
    let summary = bar.finish();
    let images =
        done.ok_or_else(|| CliError::Invalid(format!("{doing}: the daemon ended without a result")))?;
    ui.step(doing.split(' ').next().unwrap_or_default(), &format!("{subject}  {summary}"))?;
    Ok(images)
}

/// For a daemon without the progress call.
async fn plain_pull(
    client: &mut Client,
    reference: &str,
    credentials: &Credentials,
    bar: PullBar,
    ui: Ui,
) -> Result<Vec<admin::ImageSummary>> {
    let auth = (!credentials.username.is_empty()).then(|| cri::AuthConfig {
        username: credentials.username.clone(),
        password: credentials.password.clone(),
        ..Default::default()
    });
    let image = Some(cri::ImageSpec { image: reference.to_owned(), ..Default::default() });
    let request = cri::PullImageRequest { image, auth, sandbox_config: None };
    let answer =
        client.images.pull_image(request).await.map_err(CliError::rpc(format!("pull {reference}")))?;
    drop(bar);
    ui.step("pull", reference)?;
    let id = answer.into_inner().image_ref;
    Ok(vec![admin::ImageSummary { id, repo_tags: vec![reference.to_owned()], ..Default::default() }])
}
