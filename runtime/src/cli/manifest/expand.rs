//! `$(NAME)` in commands, arguments and values, by the rules of Kubernetes.

use std::collections::BTreeMap;

/// Replaces `$(NAME)` by what `known` says; an unknown name stays as it is, and `$$` is a single `$`.
pub(super) fn expand(text: &str, known: &BTreeMap<&str, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let after = &from[1..];
        let name = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        rest = match name {
            Some((name, tail)) => {
                match known.get(name) {
                    Some(value) => out.push_str(value),
                    None => out.extend(["$(", name, ")"]),
                }
                tail
            }
            None => {
                out.push('$');
                after.strip_prefix('$').unwrap_or(after)
            }
        };
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_and_escapes_kept() {
        let known = BTreeMap::from([("A", "1".to_owned()), ("B", "$(A)".to_owned()), ("E", String::new())]);
        let table = [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(A)"),
            ("[$(E)]", "[]"),
            ("$(NONE)", "$(NONE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$A ${A} $", "$A ${A} $"),
            ("$(A", "$(A"),
            ("ü$(A)ü", "ü1ü"),
        ];
        for (text, expected) in table {
            assert_eq!(expand(text, &known), expected, "{text}");
        }
    }
}
