//! The CRI log format: `<time> <stream> <tag> <content>\n`. Pure; [`crate::output`] reads and writes.

/// Content bytes of one entry when the request does not say (CONTRACT 6.3).
pub(crate) const LINE_BYTES_DEFAULT: usize = 16 * 1024;
/// Highest settable content bytes of one entry: what a stream without newlines may hold in memory.
pub(crate) const LINE_BYTES_MAX: usize = 1024 * 1024;

/// Length of `2016-10-06T00:17:09.669794202Z`.
const TIME_BYTES: usize = 30;

/// Which stream an entry came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Stdout => b" stdout ",
            Self::Stderr => b" stderr ",
        }
    }
}

/// A moment as the log shows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time([u8; TIME_BYTES]);

impl Time {
    /// `nanos`: since the Unix epoch; negative ones read as the epoch.
    pub(crate) fn new(nanos: i64) -> Self {
        let nanos = nanos.max(0).unsigned_abs();
        let (seconds, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
        let (year, month, day) = civil(seconds / 86_400);
        let of_day = seconds % 86_400;
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        let fields = [
            (0, 4, year),
            (5, 2, month),
            (8, 2, day),
            (11, 2, of_day / 3600),
            (14, 2, of_day / 60 % 60),
            (17, 2, of_day % 60),
            (20, 9, fraction),
        ];
        for (at, width, value) in fields {
            digits(&mut text[at..at + width], value);
        }
        Self(text)
    }
}

fn digits(field: &mut [u8], mut value: u64) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

/// Days since the epoch as year, month, day of the Gregorian calendar. Counts from 0000-03-01 in eras of 400 years, so that the
/// leap day is the last of a year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Appends the entries that `data` completes to `out`, until `out` has `out_bytes_max`; how much of `data` they cover.
///
/// A line of more than `line_max` bytes is cut into `P` entries of exactly that length; the piece that ends with the newline is
/// `F`. What is left over is the beginning of a line, shorter than `line_max`; it comes back at the front of the next call.
pub(crate) fn entries(
    out: &mut Vec<u8>,
    out_bytes_max: usize,
    (time, stream): (Time, Stream),
    data: &[u8],
    line_max: usize,
) -> usize {
    let mut rest = data;
    while out.len() < out_bytes_max {
        match memchr::memchr(b'\n', rest) {
            Some(end) => {
                line(out, (time, stream), &rest[..end], line_max);
                rest = &rest[end + 1..];
            }
            None if rest.len() >= line_max => {
                entry(out, (time, stream), b"P ", &rest[..line_max]);
                rest = &rest[line_max..];
            }
            None => break,
        }
    }
    data.len() - rest.len()
}

/// A whole line without its newline.
fn line(out: &mut Vec<u8>, head: (Time, Stream), content: &[u8], line_max: usize) {
    let mut content = content.strip_suffix(b"\r").unwrap_or(content);
    while content.len() > line_max {
        entry(out, head, b"P ", &content[..line_max]);
        content = &content[line_max..];
    }
    entry(out, head, b"F ", content);
}

/// The bytes of an unfinished line, at the end of a stream.
pub(crate) fn unfinished(out: &mut Vec<u8>, head: (Time, Stream), content: &[u8]) {
    if !content.is_empty() {
        entry(out, head, b"P ", content);
    }
}

#[inline]
fn entry(out: &mut Vec<u8>, (time, stream): (Time, Stream), tag: &[u8], content: &[u8]) {
    out.reserve(TIME_BYTES + 8 + 2 + content.len() + 1);
    out.extend_from_slice(&time.0);
    out.extend_from_slice(stream.label());
    out.extend_from_slice(tag);
    out.extend_from_slice(content);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: i64 = 1_475_713_029_669_794_202;

    fn log(data: &[u8], line_max: usize) -> (Vec<String>, usize) {
        let mut out = Vec::new();
        let used = entries(&mut out, usize::MAX, (Time::new(TIME), Stream::Stdout), data, line_max);
        let text = String::from_utf8_lossy(&out).into_owned();
        let entries = text.split_terminator('\n').map(|entry| entry[31 + 7..].to_owned()).collect();
        (entries, used)
    }

    #[test]
    fn times_are_rfc_3339_with_nine_digits() {
        let text = |nanos| String::from_utf8(Time::new(nanos).0.into()).unwrap();
        assert_eq!(text(TIME), "2016-10-06T00:17:09.669794202Z");
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(-5), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(text(4_107_542_399_999_999_999), "2100-02-28T23:59:59.999999999Z");
        assert_eq!(text(4_107_542_400_000_000_000), "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn an_entry_has_time_stream_tag_and_content() {
        let mut out = Vec::new();
        entries(&mut out, usize::MAX, (Time::new(TIME), Stream::Stderr), b"hello\n", 16);
        assert_eq!(out, b"2016-10-06T00:17:09.669794202Z stderr F hello\n");
    }

    #[test]
    fn lines_become_entries() {
        let cases: [(&[u8], &[&str], usize); 12] = [
            (b"", &[], 0),
            (b"a\n", &["F a"], 2),
            (b"a\nbc", &["F a"], 2),
            (b"\n\n", &["F ", "F "], 2),
            (b"a\r\n", &["F a"], 3),
            (b"a\rb\r\r\n", &["F a\rb\r"], 6),
            (b"12345678\n", &["F 12345678"], 9),
            (b"12345678\r\n", &["F 12345678"], 10),
            (b"123456789\n", &["P 12345678", "F 9"], 10),
            (b"1234567890123456\n", &["P 12345678", "F 90123456"], 17),
            (b"1234567", &[], 0),
            (b"12345678", &["P 12345678"], 8),
        ];
        for (data, wanted, used) in cases {
            let (got, got_used) = log(data, 8);
            assert_eq!(got, wanted, "{data:?}");
            assert_eq!(got_used, used, "{data:?}");
        }
    }

    #[test]
    fn output_is_bounded_and_goes_on_where_it_stopped() {
        let data = b"a\n".repeat(1000);
        let (mut all, mut used) = (Vec::new(), 0);
        while used < data.len() {
            let mut out = Vec::new();
            used += entries(&mut out, 500, (Time::new(TIME), Stream::Stdout), &data[used..], 8);
            assert!(out.len() < 600);
            all.extend(out);
        }
        assert_eq!(all.iter().filter(|&&b| b == b'\n').count(), 1000);
    }
}
