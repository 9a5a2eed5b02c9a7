//! The plugin's end of the wire, blocking, for tests.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use prost::Message;

use crate::mux::{self, Stream};
use crate::ttrpc::{self, Assembler, Body, Packet, Request, Response, Status};

/// For what must happen: a busy machine may be slow.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

/// A scripted plugin.
pub(crate) struct Peer {
    socket: UnixStream,
    assemblers: [Assembler; 2],
    got: Vec<(Stream, Packet)>,
    calls: u32,
}

impl Peer {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self { socket, assemblers: Default::default(), got: Vec::new(), calls: 0 }
    }

    fn send(&mut self, stream: Stream, packet: &Packet) {
        self.socket.write_all(&mux::frames(stream, &ttrpc::encode(packet).unwrap())).unwrap();
    }

    /// The next packet of `stream`; `None` at the end.
    fn next(&mut self, stream: Stream) -> Option<Packet> {
        loop {
            if let Some(at) = self.got.iter().position(|(of, _)| *of == stream) {
                return Some(self.got.remove(at).1);
            }
            let mut header = [0; mux::HEADER_BYTES];
            self.socket.read_exact(&mut header).ok()?;
            let header = mux::Header::parse(header).unwrap();
            let mut payload = vec![0; header.payload_bytes];
            self.socket.read_exact(&mut payload).ok()?;
            let of = Stream::of(header.stream).unwrap();
            let assembler = &mut self.assemblers[usize::from(of == Stream::Runtime)];
            self.got.extend(assembler.push(&payload).unwrap().into_iter().map(|packet| (of, packet)));
        }
    }

    /// Waits for a request of the runtime.
    pub(crate) fn request(&mut self) -> (u32, Request) {
        self.try_request().expect("the runtime hung up")
    }

    pub(crate) fn try_request(&mut self) -> Option<(u32, Request)> {
        match self.next(Stream::Plugin)? {
            Packet { call, body: Body::Request(request) } => Some((call, request)),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn answer(&mut self, call: u32, message: &impl Message) {
        let response = Response { status: None, payload: message.encode_to_vec() };
        self.send(Stream::Plugin, &Packet { call, body: Body::Response(response) });
    }

    pub(crate) fn refuse(&mut self, call: u32, code: i32, message: &str) {
        self.send(Stream::Plugin, &Packet { call, body: Body::Response(Response::refusal(code, message)) });
    }

    /// Calls the runtime without waiting.
    pub(crate) fn ask(&mut self, (service, method): (&str, &str), message: &impl Message) {
        self.calls += 2;
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: message.encode_to_vec(),
            timeout_nano: 0,
        };
        self.send(Stream::Runtime, &Packet { call: self.calls - 1, body: Body::Request(request) });
    }

    /// The runtime's next answer.
    pub(crate) fn response(&mut self) -> Result<Vec<u8>, Status> {
        match self.next(Stream::Runtime) {
            Some(Packet { body: Body::Response(response), .. }) => response.into_result(),
            other => panic!("{other:?}"),
        }
    }
}
