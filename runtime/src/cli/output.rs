//! What is printed: results on stdout, everything else on stderr.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use super::error::{CliError, Result};

/// One line on stdout.
///
/// # Errors
/// [`CliError::Exit`] when the reader is gone, as after `| head`: that is no failure.
pub(crate) fn line(text: &str) -> Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// Bytes on stdout, at once.
///
/// # Errors
/// As [`line`].
pub(crate) fn bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(written)
}

/// Bytes on stderr.
///
/// # Errors
/// As [`line`].
pub(crate) fn err_bytes(bytes: &[u8]) -> Result<()> {
    io::stderr().lock().write_all(bytes).map_err(written)
}

/// One line on stderr.
///
/// # Errors
/// As [`line`].
pub(crate) fn err_line(text: &str) -> Result<()> {
    err_bytes(format!("{text}\n").as_bytes())
}

fn written(error: io::Error) -> CliError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::Exit(0),
        _ => CliError::io("write the output")(error),
    }
}

/// Whether stderr shows progress bars.
pub(crate) fn is_interactive() -> bool {
    io::stderr().is_terminal()
}

/// Rows below a header, columns aligned, two spaces between.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let head: Vec<String> = header.iter().map(ToString::to_string).collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// `850 B`, `4.2 MB`: decimal units, as registries and disks count.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes / 100;
    let mut unit = 0;
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// `12s`, `3m`, `5h`, `4d`.
pub(crate) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `8 ms`, `2.4 s`: how long a step took.
pub(crate) fn took(time: Duration) -> String {
    match time.as_millis() {
        millis @ 0..1000 => format!("{millis} ms"),
        millis => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_ages_and_times_are_short() {
        for (bytes, text) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (4_250_000, "4.2 MB"), (999_999, "999.9 kB")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "18446.7 PB");
        for (seconds, text) in [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
        assert_eq!(took(Duration::from_millis(999)), "999 ms");
        assert_eq!(took(Duration::from_millis(12_345)), "12.3 s");
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let rows = vec![vec!["a".to_owned(), "x".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(table(&["N", "VALUE"], &rows), "N     VALUE\na     x\nlong\n");
    }
}
