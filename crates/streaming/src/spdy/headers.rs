//! Header blocks: name and value pairs, compressed with zlib and the dictionary of SPDY/3.
//!
//! One zlib stream per direction lives as long as the connection, so that every block must be read in
//! order, those of refused streams too. What we send is wrapped into stored deflate blocks: our blocks are
//! empty but for tests, and a compressor would cost a quarter of a megabyte per connection.
//!
//! Source: SPDY protocol draft 3, section 2.6.10.

use std::sync::LazyLock;

use flate2::{Decompress, FlushDecompress, Status};

use super::frame::FrameError;

/// Size of an inflated header block.
pub const HEADER_BLOCK_BYTES_MAX: usize = 64 * 1024;
/// Pairs in a header block.
pub const HEADERS_MAX: usize = 128;

const INFLATE_STEP_BYTES: usize = 4096;

const DICTIONARY_WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

const DICTIONARY_TAIL: &str = concat!(
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505",
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request",
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented",
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 ",
    "Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,",
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=",
    "gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
);

/// zlib's header for a window of 32 KiB and a preset dictionary, then the dictionary's Adler-32.
const ZLIB_HEADER: [u8; 6] = [0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];

/// An empty stored block, as zlib's sync flush ends with: Go's reader hands out what it has when it sees one, and else fails at the end
/// of the bytes it was given.
const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];

/// The dictionary that both ends prime zlib with.
pub static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::with_capacity(1423);
    for word in DICTIONARY_WORDS {
        dictionary.extend(length(word.len()));
        dictionary.extend(word.as_bytes());
    }
    dictionary.extend(DICTIONARY_TAIL.as_bytes());
    dictionary
});

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// Name and value pairs, in their order on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of `name`, whatever its case; several values are one with NULs between.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn parse(block: &[u8]) -> Result<Self, FrameError> {
        let mut rest = block;
        let count = take_u32(&mut rest)?;
        if count > HEADERS_MAX {
            return Err(FrameError::TooManyHeaders(count));
        }
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            pairs.push((take_text(&mut rest)?, take_text(&mut rest)?));
        }
        Ok(Self(pairs))
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Headers {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
    }
}

fn take_u32(rest: &mut &[u8]) -> Result<usize, FrameError> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or(FrameError::HeaderBlock)?;
    *rest = tail;
    usize::try_from(u32::from_be_bytes(*head)).map_err(|_narrow| FrameError::HeaderBlock)
}

fn take_text(rest: &mut &[u8]) -> Result<String, FrameError> {
    let length = take_u32(rest)?;
    let (text, tail) = rest.split_at_checked(length).ok_or(FrameError::HeaderBlock)?;
    *rest = tail;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Reads the header blocks of one direction, in order.
#[derive(Debug)]
pub struct HeaderReader {
    zlib: Decompress,
}

impl Default for HeaderReader {
    fn default() -> Self {
        Self { zlib: Decompress::new(true) }
    }
}

impl HeaderReader {
    /// Reads one compressed block.
    ///
    /// # Errors
    /// What is not zlib with the dictionary, or inflates to more than the limits allow.
    pub fn read(&mut self, compressed: &[u8]) -> Result<Headers, FrameError> {
        Headers::parse(&self.inflate(compressed)?)
    }

    fn inflate(&mut self, mut compressed: &[u8]) -> Result<Vec<u8>, FrameError> {
        let mut block = Vec::new();
        loop {
            block.reserve(INFLATE_STEP_BYTES);
            let before = (self.zlib.total_in(), block.len());
            let status = self.step(compressed, &mut block)?;
            let consumed = usize::try_from(self.zlib.total_in() - before.0).unwrap_or(usize::MAX);
            compressed = compressed.get(consumed..).unwrap_or_default();
            if block.len() > HEADER_BLOCK_BYTES_MAX {
                return Err(FrameError::HeaderBlockSize);
            }
            let stuck = consumed == 0 && block.len() == before.1;
            match status {
                Some(Status::StreamEnd) => return Err(FrameError::HeaderBlock),
                // The dictionary was wanted, and is set.
                None => {}
                Some(_) if compressed.is_empty() && block.len() < block.capacity() => return Ok(block),
                Some(_) if stuck => return Err(FrameError::HeaderBlock),
                Some(_) => {}
            }
        }
    }

    fn step(&mut self, compressed: &[u8], block: &mut Vec<u8>) -> Result<Option<Status>, FrameError> {
        match self.zlib.decompress_vec(compressed, block, FlushDecompress::Sync) {
            Ok(status) => Ok(Some(status)),
            Err(error) if error.needs_dictionary().is_some() => {
                self.zlib.set_dictionary(&DICTIONARY).map_err(FrameError::Zlib)?;
                Ok(None)
            }
            Err(error) => Err(FrameError::Zlib(error)),
        }
    }
}

/// Writes the header blocks of one direction, in order.
#[derive(Debug, Default)]
pub struct HeaderWriter {
    begun: bool,
}

impl HeaderWriter {
    /// The block of `headers`, compressed in form.
    pub fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = length(headers.0.len()).to_vec();
        for text in headers.0.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend(length(text.len()));
            plain.extend(text.as_bytes());
        }
        let mut block = Vec::with_capacity(ZLIB_HEADER.len() + plain.len() + 2 * FLUSH.len());
        if !std::mem::replace(&mut self.begun, true) {
            block.extend(ZLIB_HEADER);
        }
        for part in plain.chunks(usize::from(u16::MAX)) {
            let size = u16::try_from(part.len()).unwrap_or(u16::MAX);
            block.push(0);
            block.extend(size.to_le_bytes());
            block.extend((!size).to_le_bytes());
            block.extend(part);
        }
        block.extend(FLUSH);
        block
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    /// Compresses as the clients in use do: one stream, flushed after each block.
    struct Client(Compress);

    impl Client {
        fn new() -> Self {
            let mut zlib = Compress::new(Compression::best(), true);
            assert_eq!(zlib.set_dictionary(&DICTIONARY).unwrap(), 0xe3c6_a7c2);
            Self(zlib)
        }

        fn block(&mut self, plain: &[u8]) -> Vec<u8> {
            let mut out = Vec::with_capacity(plain.len() + 1024);
            self.0.compress_vec(plain, &mut out, FlushCompress::Sync).unwrap();
            out
        }
    }

    fn plain(headers: &Headers) -> Vec<u8> {
        // After zlib's header and one stored block's.
        let block = HeaderWriter { begun: true }.write(headers);
        block[5..block.len() - FLUSH.len()].to_vec()
    }

    #[test]
    fn blocks_of_a_compressing_client_are_read_in_order() {
        let (mut client, mut reader) = (Client::new(), HeaderReader::default());
        for kind in ["error", "stdin", "stdout", "data"] {
            let headers = Headers::from([("streamtype", kind), ("port", "80"), ("requestid", "7")]);
            assert_eq!(reader.read(&client.block(&plain(&headers))).unwrap(), headers);
        }
    }

    #[test]
    fn each_block_is_flushed() {
        let mut writer = HeaderWriter::default();
        for begin in [&ZLIB_HEADER[..], &[]] {
            let want = [begin, &[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0], &FLUSH].concat();
            assert_eq!(writer.write(&Headers::default()), want);
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut client = Client::new();
        let bomb = client.block(&vec![0; 8 << 20]);
        assert!(
            matches!(HeaderReader::default().read(&bomb), Err(FrameError::HeaderBlockSize)),
            "{}",
            bomb.len()
        );
    }

    #[test]
    fn too_many_pairs_are_refused() {
        let mut client = Client::new();
        let block = client.block(&[0, 0, 0, 129]);
        assert!(matches!(HeaderReader::default().read(&block), Err(FrameError::TooManyHeaders(129))));
    }

    #[test]
    fn names_are_found_whatever_their_case() {
        let headers = Headers::from([("requestID", "1")]);
        assert_eq!(headers.get("requestid"), Some("1"));
        assert_eq!(headers.get("port"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(blocks in prop::collection::vec(prop::collection::vec((".{0,40}", ".{0,300}"), 0..9), 1..4)) {
            let (mut writer, mut reader) = (HeaderWriter::default(), HeaderReader::default());
            for pairs in blocks {
                let headers = Headers(pairs);
                prop_assert_eq!(reader.read(&writer.write(&headers)).unwrap(), headers);
            }
        }

        #[test]
        fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600), zlib in any::<bool>()) {
            let mut block = if zlib { ZLIB_HEADER.to_vec() } else { Vec::new() };
            block.extend(bytes);
            drop(HeaderReader::default().read(&block));
        }
    }
}
