//! Who set what. A field, or an entry of a list or map, has one owner among the plugins; a second one is a conflict unless it
//! removes the first one's value before.
//!
//! The record is the protocol's own [`OwningPlugins`], which validating plugins get; `-plugin` as owner tells who removed.

use crate::api::{Field, OwningPlugins};
use crate::error::NriError;

/// The claims of one plugin on one container.
#[derive(Debug)]
pub(crate) struct Claims<'a> {
    pub(crate) owners: &'a mut OwningPlugins,
    pub(crate) container: &'a str,
    pub(crate) plugin: &'a str,
}

impl Claims<'_> {
    fn simple(&mut self) -> &mut std::collections::BTreeMap<i32, String> {
        &mut self.owners.owners.entry(self.container.to_owned()).or_default().simple
    }

    fn entries(&mut self, field: Field) -> &mut std::collections::BTreeMap<String, String> {
        let owners = self.owners.owners.entry(self.container.to_owned()).or_default();
        &mut owners.compound.entry(field.into()).or_default().owners
    }

    /// The plugin sets the whole field.
    ///
    /// # Errors
    /// [`NriError::Conflict`].
    pub(crate) fn claim(&mut self, field: Field) -> Result<(), NriError> {
        let plugin = self.plugin.to_owned();
        match self.simple().insert(field.into(), plugin) {
            Some(owner) => self.check(&owner, field.as_str_name().to_owned()),
            None => Ok(()),
        }
    }

    /// The plugin sets one entry.
    ///
    /// # Errors
    /// [`NriError::Conflict`].
    pub(crate) fn claim_entry(&mut self, field: Field, key: &str) -> Result<(), NriError> {
        let plugin = self.plugin.to_owned();
        match self.entries(field).insert(key.to_owned(), plugin) {
            Some(owner) => self.check(&owner, format!("{} {key}", field.as_str_name())),
            None => Ok(()),
        }
    }

    /// The plugin adds to a field that any number may add to.
    pub(crate) fn share(&mut self, field: Field) {
        let plugin = self.plugin;
        let owner = self.simple().entry(field.into()).or_default();
        let both = if owner.is_empty() { plugin.to_owned() } else { format!("{owner},{plugin}") };
        *owner = both;
    }

    /// The plugin removes the field's value, whoever set it.
    pub(crate) fn clear(&mut self, field: Field) {
        let plugin = format!("-{}", self.plugin);
        self.simple().insert(field.into(), plugin);
    }

    /// The plugin removes an entry, whoever set it.
    pub(crate) fn clear_entry(&mut self, field: Field, key: &str) {
        let plugin = format!("-{}", self.plugin);
        self.entries(field).insert(key.to_owned(), plugin);
    }

    fn check(&self, owner: &str, field: String) -> Result<(), NriError> {
        let owner = owner.strip_prefix('-').unwrap_or(owner);
        if owner == self.plugin {
            return Ok(());
        }
        Err(NriError::Conflict { first: owner.to_owned(), second: self.plugin.to_owned(), field })
    }
}
