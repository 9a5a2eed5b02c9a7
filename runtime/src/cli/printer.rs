//! Container output on our own stdout and stderr.

use super::error::Result;
use super::log_file::{Entry, Stream};
use super::output;

/// Bytes of an unfinished line that is held back so that lines of several containers do not mix.
const HELD_BYTES_MAX: usize = 1 << 20;

/// How a container's lines are shown.
#[derive(Debug, Clone, Default)]
pub(crate) struct Style {
    /// In front of each line; empty passes the output through byte for byte.
    pub(crate) prefix: String,
    /// Whether each line begins with its time.
    pub(crate) timestamps: bool,
}

/// Prints the entries of one container.
#[derive(Debug, Default)]
pub(crate) struct Printer {
    style: Style,
    /// Unfinished lines of stdout and stderr.
    held: [Vec<u8>; 2],
}

impl Printer {
    pub(crate) fn new(style: Style) -> Self {
        Self { style, held: Default::default() }
    }

    /// # Errors
    /// When it cannot be written.
    pub(crate) fn print(&mut self, entry: Entry<'_>) -> Result<()> {
        let bytes = self.render(entry);
        write(entry.stream, &bytes)
    }

    /// Prints what is left of lines that never ended.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn finish(&mut self) -> Result<()> {
        for (stream, held) in [Stream::Stdout, Stream::Stderr].into_iter().zip(&mut self.held) {
            let mut line = std::mem::take(held);
            if !line.is_empty() {
                line.push(b'\n');
                write(stream, &line)?;
            }
        }
        Ok(())
    }

    fn render(&mut self, entry: Entry<'_>) -> Vec<u8> {
        let held = &mut self.held[entry.stream as usize];
        let is_raw = self.style.prefix.is_empty() && !self.style.timestamps;
        if held.is_empty() {
            held.extend_from_slice(self.style.prefix.as_bytes());
            if self.style.timestamps {
                held.extend_from_slice(entry.time.as_bytes());
                held.push(b' ');
            }
        }
        held.extend_from_slice(entry.content);
        if !entry.partial {
            held.push(b'\n');
        } else if !is_raw && held.len() < HELD_BYTES_MAX {
            return Vec::new();
        } else if !is_raw {
            held.push(b'\n');
        }
        std::mem::take(held)
    }
}

fn write(stream: Stream, bytes: &[u8]) -> Result<()> {
    match stream {
        Stream::Stdout => output::bytes(bytes),
        Stream::Stderr => output::err_bytes(bytes),
    }
}

/// `name | ` for each container, padded so that the bars align; nothing for a single one.
pub(crate) fn prefixes(names: &[&str]) -> Vec<String> {
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    match names {
        [_] => vec![String::new()],
        names => names.iter().map(|name| format!("{name:width$} | ")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(printer: &mut Printer, tag: char, content: &str) -> String {
        let entry =
            Entry { time: "T", stream: Stream::Stdout, partial: tag == 'P', content: content.as_bytes() };
        String::from_utf8(printer.render(entry)).unwrap()
    }

    #[test]
    fn without_a_prefix_bytes_pass_through() {
        let mut printer = Printer::default();
        assert_eq!(render(&mut printer, 'P', "pass"), "pass");
        assert_eq!(render(&mut printer, 'F', "word"), "word\n");
    }

    #[test]
    fn with_a_prefix_lines_come_whole() {
        let mut printer = Printer::new(Style { prefix: "a | ".into(), timestamps: true });
        assert_eq!(render(&mut printer, 'P', "one "), "");
        assert_eq!(render(&mut printer, 'F', "line"), "a | T one line\n");
        assert_eq!(render(&mut printer, 'F', ""), "a | T \n");
        let long = "x".repeat(HELD_BYTES_MAX);
        assert!(render(&mut printer, 'P', &long).ends_with("x\n"), "but not at any price");
    }

    #[test]
    fn prefixes_align() {
        assert_eq!(prefixes(&["a"]), [""]);
        assert_eq!(prefixes(&["a", "long"]), ["a    | ", "long | "]);
    }
}
