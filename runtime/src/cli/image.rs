//! `crisp image`.

use std::process::ExitCode;

use crisp_proto::{admin, cri};

use super::client::Client;
use super::error::{CliError, Result};
use super::ui::Ui;
use super::{ImageCommand, output, pull};

pub(super) async fn image(mut client: Client, command: &ImageCommand) -> Result<ExitCode> {
    let ui = Ui { quiet: false };
    match command {
        ImageCommand::Ls { quiet: true } => list_ids(&mut client).await?,
        ImageCommand::Ls { quiet: false } => list(&mut client).await?,
        ImageCommand::Rm { images } => {
            for image in images {
                remove(&mut client, image).await?;
            }
        }
        ImageCommand::Pull { image, username, password_stdin } => {
            let password = if *password_stdin { read_password()? } else { String::new() };
            let credentials = pull::Credentials { username: username.clone().unwrap_or_default(), password };
            for image in pull::pull(&mut client, image, &credentials, ui).await? {
                output::line(&image.id)?;
            }
        }
        ImageCommand::Import { file, name } => {
            let path = std::path::absolute(file).and_then(|path| path.canonicalize());
            let path = path.map_err(CliError::io(format!("find {}", file.display())))?;
            let Some(path) = path.to_str() else {
                return Err(CliError::Invalid(format!("the path {} is not UTF-8", path.display())));
            };
            let name = name.clone().unwrap_or_default();
            let request = admin::ImportImageRequest { path: path.to_owned(), name };
            for image in pull::import(&mut client, request, ui).await? {
                let tags = if image.repo_tags.is_empty() {
                    "no name".to_owned()
                } else {
                    image.repo_tags.join(", ")
                };
                output::line(&format!("{}  {tags}", image.id))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// From the first line of stdin, so that it is in no process list and no shell history.
fn read_password() -> Result<String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(CliError::io("read the password"))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

async fn list_ids(client: &mut Client) -> Result<()> {
    let ids: String = client.all_images().await?.iter().map(|image| format!("{}\n", image.id)).collect();
    output::bytes(ids.as_bytes())
}

async fn list(client: &mut Client) -> Result<()> {
    let mut rows: Vec<Vec<String>> = client.all_images().await?.iter().flat_map(rows).collect();
    rows.sort();
    output::bytes(output::table(&["IMAGE", "TAG", "ID", "SIZE"], &rows).as_bytes())
}

/// A line for each tag; one for an image without.
fn rows(image: &cri::Image) -> Vec<Vec<String>> {
    let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
    let row = |name: &str, tag: &str| {
        vec![name.to_owned(), tag.to_owned(), id.chars().take(12).collect(), output::size(image.size)]
    };
    if image.repo_tags.is_empty() {
        let name = image.repo_digests.first().and_then(|digest| digest.split('@').next());
        return vec![row(name.unwrap_or("-"), "-")];
    }
    image
        .repo_tags
        .iter()
        .map(|tag| tag.rsplit_once(':').map_or_else(|| row(tag, "-"), |(n, t)| row(n, t)))
        .collect()
}

async fn remove(client: &mut Client, image: &str) -> Result<()> {
    // RemoveImage of what is not here is a success; who types a name wants to know.
    if client.image(image).await?.is_none() {
        return Err(CliError::Invalid(format!("there is no image {image:?}")));
    }
    let spec = Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() });
    let removed = client.images.remove_image(cri::RemoveImageRequest { image: spec }).await;
    removed.map(drop).map_err(CliError::rpc(format!("remove {image}")))?;
    Ui { quiet: false }.step("remove", image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tag_is_a_line() {
        let image = cri::Image {
            id: format!("sha256:{}", "ab".repeat(32)),
            repo_tags: vec!["localhost:5000/a/b:1".into(), "docker.io/library/b:latest".into()],
            size: 1500,
            ..Default::default()
        };
        assert_eq!(rows(&image)[0], ["localhost:5000/a/b", "1", "abababababab", "1.5 kB"]);
        assert_eq!(rows(&image).len(), 2);
        let untagged = cri::Image { repo_tags: vec![], repo_digests: vec!["r/x@sha256:0".into()], ..image };
        assert_eq!(rows(&untagged)[0][..2], ["r/x", "-"]);
    }
}
