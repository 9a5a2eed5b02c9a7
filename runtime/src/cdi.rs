//! Devices by the Container Device Interface. What vendors describe, and how it is applied, is [`crisp_cdi`]'s.

use crisp_cdi::{CdiError, Registry};
use crisp_domain::ErrorKind;
use crisp_proto::cri::ContainerConfig;
use oci_spec::runtime::Spec;

use crate::config;
use crate::error::{Doing as _, Error, Kinded, Result};

/// How kubelets before 1.28 name devices: values of such annotations are lists of names.
const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

impl Kinded for CdiError {
    fn error_kind(&self) -> ErrorKind {
        self.kind()
    }
}

/// What vendors describe.
#[derive(Debug)]
pub(crate) struct Cdi {
    /// `None` where it is switched off.
    registry: Option<Registry>,
}

impl Cdi {
    pub(crate) fn open(config: &config::Cdi) -> Self {
        Self { registry: config.enabled.then(|| Registry::new(config.spec_dirs.clone())) }
    }

    /// Adds the devices that the request names. Blocks: specifications are read again when they changed.
    ///
    /// # Errors
    /// A device that nothing describes, by its name.
    pub(crate) fn inject(&self, request: &ContainerConfig, spec: &mut Spec) -> Result<()> {
        self.inject_named(&requested(request), spec)
    }

    /// Adds devices by their names.
    ///
    /// # Errors
    /// As [`Cdi::inject`].
    pub(crate) fn inject_named(&self, names: &[String], spec: &mut Spec) -> Result<()> {
        match (&self.registry, names) {
            (_, []) => Ok(()),
            (Some(registry), names) => registry.inject(names, spec).doing("inject the CDI devices"),
            (None, [first, ..]) => {
                Err(Error::Invalid(format!("CDI device {first}: CDI is switched off in the configuration")))
            }
        }
    }

    /// Files that are left out, one line each; for the verbose status. Blocks.
    pub(crate) fn problems(&self) -> Vec<String> {
        let problems = self.registry.as_ref().map(Registry::problems).unwrap_or_default();
        problems
            .into_iter()
            .map(|problem| format!("{}: {}", problem.path.display(), problem.problem))
            .collect()
    }
}

/// The names, those of CRI's own field first, each once. Annotations come in the order of their keys.
fn requested(request: &ContainerConfig) -> Vec<String> {
    let mut annotations: Vec<_> =
        request.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX)).collect();
    annotations.sort();
    let annotated = annotations.iter().flat_map(|(_, names)| names.split(',')).map(str::trim);
    let fields = request.cdi_devices.iter().map(|device| device.name.as_str());
    let mut names: Vec<String> = Vec::new();
    for name in fields.chain(annotated) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crisp_proto::cri::CdiDevice;

    #[test]
    fn names_come_from_both_places_each_once() {
        let device = |name: &str| CdiDevice { name: name.to_owned() };
        let request = ContainerConfig {
            cdi_devices: vec![device("v/c=1"), device("v/c=2")],
            annotations: [
                ("cdi.k8s.io/b".to_owned(), "v/c=4, v/c=2".to_owned()),
                ("cdi.k8s.io/a".to_owned(), "v/c=3".to_owned()),
                ("other".to_owned(), "v/c=5".to_owned()),
            ]
            .into(),
            ..ContainerConfig::default()
        };
        assert_eq!(requested(&request), ["v/c=1", "v/c=2", "v/c=3", "v/c=4"]);
    }

    #[test]
    fn a_device_is_never_left_out_without_a_word() {
        let off = Cdi { registry: None };
        let names = ["v/c=1".to_owned()];
        assert!(off.inject_named(&names, &mut Spec::default()).is_err());
        assert!(off.inject_named(&[], &mut Spec::default()).is_ok());
    }
}
