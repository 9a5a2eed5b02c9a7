//! Pods and containers as a kubelet would ask for them.
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;

use crate::eventually::{SOON, eventually};
use crate::node::{BUSYBOX, Node};

/// A pod of the test with its configuration.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its id.
    pub id: String,
    /// What it was made of.
    pub config: cri::PodSandboxConfig,
}

/// As a kubelet asks by default: the pod's network and IPC, each container its own processes.
fn usual_namespaces() -> cri::NamespaceOption {
    cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() }
}

/// One line of a container log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// RFC 3339, as written.
    pub time: String,
    /// `stdout` or `stderr`
    pub stream: String,
    /// `F` or `P`
    pub tag: String,
    /// The content.
    pub text: String,
}

impl Node {
    /// The configuration of a pod with this name, in the namespace `test`.
    #[must_use]
    pub fn pod(&self, name: &str) -> cri::PodSandboxConfig {
        let uid = format!("uid-{name}-{}", self.next_number());
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: "test".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.dir().join("logs").join(uid).display().to_string(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            annotations: [("example.org/note".to_owned(), "kept as it is".to_owned())].into(),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(usual_namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// The configuration of a busybox container.
    #[must_use]
    pub fn container(&self, name: &str, command: &[&str]) -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() }),
            command: command.iter().map(|part| (*part).to_owned()).collect(),
            log_path: format!("{name}.log"),
            labels: [("container".to_owned(), name.to_owned())].into(),
            linux: Some(cri::LinuxContainerConfig {
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(usual_namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Runs a pod.
    ///
    /// # Errors
    /// The call's status.
    pub fn run(&self, config: cri::PodSandboxConfig) -> Result<Pod> {
        self.run_with(config, "")
    }

    /// Runs a pod with a handler.
    ///
    /// # Errors
    /// The call's status.
    pub fn run_with(&self, config: cri::PodSandboxConfig, handler: &str) -> Result<Pod> {
        let id = self.cri.run_pod(&config, handler).context("RunPodSandbox")?;
        Ok(Pod { id, config })
    }

    /// Creates and starts a container.
    ///
    /// # Errors
    /// The call's status.
    pub fn launch(&self, pod: &Pod, config: &cri::ContainerConfig) -> Result<String> {
        let id = self.cri.create(&pod.id, config, &pod.config).context("CreateContainer")?;
        self.cri.start(&id).context("StartContainer")?;
        Ok(id)
    }

    /// Runs a pod with one container of this command.
    ///
    /// # Errors
    /// The call's status.
    pub fn one(&self, name: &str, command: &[&str]) -> Result<(Pod, String)> {
        let pod = self.run(self.pod(name))?;
        let container = self.launch(&pod, &self.container("main", command))?;
        Ok((pod, container))
    }

    /// Waits until the container has exited.
    ///
    /// # Errors
    /// When it has not soon.
    pub fn wait_exit(&self, container: &str) -> Result<cri::ContainerStatus> {
        eventually(SOON, || {
            let status = self.cri.container_status(container)?;
            ensure!(
                status.state() == cri::ContainerState::ContainerExited,
                "{container} is {:?}",
                status.state()
            );
            Ok(status)
        })
    }

    /// Runs a command to its end in a container of the pod; gives the exit code and the log.
    ///
    /// # Errors
    /// When it does not end.
    pub fn run_to_end(&self, pod: &Pod, config: &cri::ContainerConfig) -> Result<(i32, Vec<LogLine>)> {
        let id = self.launch(pod, config)?;
        let status = self.wait_exit(&id)?;
        Ok((status.exit_code, self.log(pod, config)?))
    }

    /// What a command prints on stdout in a container of the pod; it must end with 0.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub fn printed(&self, pod: &Pod, config: &cri::ContainerConfig) -> Result<String> {
        let (code, log) = self.run_to_end(pod, config)?;
        let text: Vec<&str> = log.iter().map(|line| line.text.as_str()).collect();
        let text = text.join("\n");
        ensure!(code == 0, "{:?} ended with {code}: {text}", config.command);
        Ok(text)
    }

    /// Where the log of a container lies.
    #[must_use]
    pub fn log_file(pod: &Pod, config: &cri::ContainerConfig) -> PathBuf {
        PathBuf::from(&pod.config.log_directory).join(&config.log_path)
    }

    /// The log of a container.
    ///
    /// # Errors
    /// When a line is not in the format of the CRI.
    pub fn log(&self, pod: &Pod, config: &cri::ContainerConfig) -> Result<Vec<LogLine>> {
        let path = Self::log_file(pod, config);
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        parse_log(&String::from_utf8_lossy(&bytes))
    }

    /// A command in a container that must end with 0: its stdout.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<String> {
        let (code, stdout, stderr) =
            self.cri.exec(container, command).with_context(|| format!("exec {command:?}"))?;
        ensure!(code == 0, "{command:?} ended with {code}: {stdout}{stderr}");
        Ok(stdout)
    }
}

/// Parses a log file; a last line without its end is not complete and left out.
///
/// # Errors
/// When a line is not `time stream tag text`.
pub fn parse_log(text: &str) -> Result<Vec<LogLine>> {
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |line: &str| {
        let mut parts = line.splitn(4, ' ');
        let mut next = || parts.next().map(str::to_owned).with_context(|| format!("log line {line:?}"));
        let parsed = LogLine { time: next()?, stream: next()?, tag: next()?, text: next()? };
        ensure!(parsed.time.len() >= 20 && parsed.time.contains('T'), "time in {line:?}");
        ensure!(["stdout", "stderr"].contains(&parsed.stream.as_str()), "stream in {line:?}");
        ensure!(["F", "P"].contains(&parsed.tag.as_str()), "tag in {line:?}");
        Ok(parsed)
    };
    if complete.is_empty() { Ok(Vec::new()) } else { complete.lines().map(parse).collect() }
}
