//! Links, races and bounds below a root.
