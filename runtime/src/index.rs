//! What exists, by id and by name. Reads take a lock that is held for map operations only: no syscall, no call to a shim.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::{Error, Result};

/// What an [`Index`] holds.
pub(crate) trait Indexed {
    /// For messages: "sandbox", "container".
    const WHAT: &'static str;
    fn id(&self) -> &str;
    /// The name that is reserved as long as the thing exists.
    fn name(&self) -> &str;
    /// Whether clients may know of it.
    fn is_visible(&self) -> bool;
}

/// Things by id, and their reserved names.
#[derive(Debug)]
pub(crate) struct Index<T> {
    tables: RwLock<Tables<T>>,
}

#[derive(Debug)]
struct Tables<T> {
    by_id: BTreeMap<String, Arc<T>>,
    ids_by_name: HashMap<String, String>,
}

impl<T: Indexed> Index<T> {
    pub(crate) fn new() -> Self {
        Self { tables: RwLock::new(Tables { by_id: BTreeMap::new(), ids_by_name: HashMap::new() }) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables<T>> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables<T>> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `thing`, which reserves its name.
    ///
    /// # Errors
    /// [`Error::NameInUse`].
    pub(crate) fn insert(&self, thing: Arc<T>) -> Result<()> {
        let mut tables = self.write();
        if let Some(holder) = tables.ids_by_name.get(thing.name()) {
            return Err(Error::NameInUse {
                what: T::WHAT,
                name: thing.name().to_owned(),
                holder: holder.clone(),
            });
        }
        tables.ids_by_name.insert(thing.name().to_owned(), thing.id().to_owned());
        tables.by_id.insert(thing.id().to_owned(), thing);
        Ok(())
    }

    /// Adds `thing` without reserving its name: for what is being taken apart.
    pub(crate) fn insert_nameless(&self, thing: Arc<T>) {
        self.write().by_id.insert(thing.id().to_owned(), thing);
    }

    /// Takes it out and frees its name.
    pub(crate) fn remove(&self, thing: &T) {
        let mut tables = self.write();
        tables.by_id.remove(thing.id());
        if tables.ids_by_name.get(thing.name()).is_some_and(|id| id == thing.id()) {
            tables.ids_by_name.remove(thing.name());
        }
    }

    /// The visible thing with this id or unambiguous prefix of an id.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`].
    pub(crate) fn get(&self, id: &str) -> Result<Arc<T>> {
        self.find(id)?.ok_or_else(|| Error::NotFound { what: T::WHAT, id: id.to_owned() })
    }

    /// As [`Index::get`], with `None` where nothing has this id.
    ///
    /// # Errors
    /// [`Error::Ambiguous`].
    pub(crate) fn find(&self, id: &str) -> Result<Option<Arc<T>>> {
        if id.is_empty() {
            return Ok(None);
        }
        let tables = self.read();
        let mut matches = tables
            .by_id
            .range::<str, _>((Bound::Included(id), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(id))
            .map(|(_, thing)| thing)
            .filter(|thing| thing.is_visible());
        let Some(first) = matches.next() else { return Ok(None) };
        match matches.next() {
            Some(second) if first.id() != id => Err(Error::Ambiguous {
                what: T::WHAT,
                prefix: id.to_owned(),
                first: first.id().to_owned(),
                second: second.id().to_owned(),
            }),
            _ => Ok(Some(Arc::clone(first))),
        }
    }

    /// The thing with exactly this id, visible or not.
    pub(crate) fn find_any(&self, id: &str) -> Option<Arc<T>> {
        self.read().by_id.get(id).cloned()
    }

    /// What holds this name, visible or not.
    pub(crate) fn by_name(&self, name: &str) -> Option<Arc<T>> {
        let tables = self.read();
        tables.ids_by_name.get(name).and_then(|id| tables.by_id.get(id)).cloned()
    }

    /// Everything, visible or not, ordered by id.
    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        self.read().by_id.values().cloned().collect()
    }

    /// What clients may see, ordered by id.
    pub(crate) fn visible(&self) -> Vec<Arc<T>> {
        self.read().by_id.values().filter(|thing| thing.is_visible()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Thing(&'static str, &'static str, bool);

    impl Indexed for Thing {
        const WHAT: &'static str = "thing";
        fn id(&self) -> &str {
            self.0
        }
        fn name(&self) -> &str {
            self.1
        }
        fn is_visible(&self) -> bool {
            self.2
        }
    }

    fn index() -> Index<Thing> {
        let index = Index::new();
        for thing in [Thing("abc1", "a", true), Thing("abd2", "b", true), Thing("abe3", "hidden", false)] {
            index.insert(Arc::new(thing)).unwrap();
        }
        index
    }

    #[test]
    fn prefixes_resolve_when_they_are_unambiguous() {
        let index = index();
        assert_eq!(index.get("abc").unwrap().0, "abc1");
        assert!(matches!(index.get("ab"), Err(Error::Ambiguous { .. })));
        for absent in ["", "x", "abe3", "abc12"] {
            assert!(matches!(index.get(absent), Err(Error::NotFound { .. })), "{absent}");
        }
    }

    #[test]
    fn a_name_is_taken_until_its_holder_goes() {
        let index = index();
        let refused = index.insert(Arc::new(Thing("ffff", "a", true)));
        assert!(matches!(refused, Err(Error::NameInUse { holder, .. }) if holder == "abc1"));
        index.remove(&Thing("abc1", "a", true));
        index.insert(Arc::new(Thing("ffff", "a", true))).unwrap();
        assert_eq!(index.by_name("a").unwrap().0, "ffff");
        index.insert_nameless(Arc::new(Thing("eeee", "a", false)));
        index.remove(&Thing("eeee", "a", false));
        assert_eq!(index.by_name("a").unwrap().0, "ffff", "what has no name takes none with it");
    }
}
