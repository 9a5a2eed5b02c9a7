use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use crisp_sys::bpf::{BpfError, DeviceProgram};

use crate::devices::DeviceTable;

/// Programs kept loaded. Nearly all containers of a node share one or two rule lists, and a load costs the verifier's time.
const PROGRAMS_MAX: usize = 8;

/// Loaded device programs by rule list, the last used one first.
#[derive(Debug, Default)]
pub(crate) struct ProgramCache(Mutex<Vec<(DeviceTable, Arc<DeviceProgram>)>>);

impl ProgramCache {
    /// Puts the rules in force on the cgroup v2 directory.
    pub(crate) fn attach(&self, table: &DeviceTable, cgroup: impl AsFd) -> Result<(), BpfError> {
        let program = match self.find(table) {
            Some(program) => program,
            None => self.load(table)?,
        };
        program.attach(cgroup.as_fd())
    }

    fn find(&self, table: &DeviceTable) -> Option<Arc<DeviceProgram>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(other, _)| other == table)?;
        kept[..=at].rotate_right(1);
        Some(Arc::clone(&kept[0].1))
    }

    /// Outside of the lock: two that load the same list at once do the work twice, and no harm.
    fn load(&self, table: &DeviceTable) -> Result<Arc<DeviceProgram>, BpfError> {
        let program = Arc::new(DeviceProgram::load(&table.program())?);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(0, (table.clone(), Arc::clone(&program)));
        kept.truncate(PROGRAMS_MAX);
        Ok(program)
    }
}
