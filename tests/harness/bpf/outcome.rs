//! What became of a packet, and what a test expects of it: verdict, every byte, and exactly these counters.

use std::fmt::Write as _;
use std::net::SocketAddrV4;

use steer_common::verdict::Counter;

use super::frame::{Frame, backend_addr, backend_mac, checksums_ok};
use super::{Bench, Hook, Program, Ran};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
/// `TC_ACT_UNSPEC`: the next program on the hook, or the stack.
const TC_PASS: u32 = u32::MAX;
const TC_SHOT: u32 = 2;
const TC_REDIRECT: u32 = 7;

/// What became of a packet.
#[must_use = "an outcome that nobody looks at proves nothing"]
pub struct Outcome<S> {
    program: Program,
    sent: S,
    ran: Ran,
    /// Counters that moved, each with how far.
    moved: Vec<(Counter, u64)>,
}

#[derive(Clone, Copy)]
enum Fate {
    Pass,
    Drop,
    Redirect,
}

impl Fate {
    const fn code(self, program: Program) -> u32 {
        match (program, self) {
            (Program::Uplink(Hook::Xdp) | Program::Empty(Hook::Xdp), Self::Pass) => XDP_PASS,
            (Program::Uplink(Hook::Xdp) | Program::Empty(Hook::Xdp), Self::Drop) => XDP_DROP,
            (Program::Uplink(Hook::Xdp) | Program::Empty(Hook::Xdp), Self::Redirect) => XDP_REDIRECT,
            (_, Self::Pass) => TC_PASS,
            (_, Self::Drop) => TC_SHOT,
            (_, Self::Redirect) => TC_REDIRECT,
        }
    }
}

impl Bench {
    /// A packet comes in on the uplink.
    #[track_caller]
    pub fn send(&mut self, hook: Hook, frame: &Frame) -> Outcome<Frame> {
        self.observe(Program::Uplink(hook), frame.clone(), &frame.bytes())
    }

    /// A frame comes in on the uplink that is no plain TCP packet.
    #[track_caller]
    pub fn send_bytes(&mut self, hook: Hook, bytes: &[u8]) -> Outcome<Vec<u8>> {
        self.watch(Program::Uplink(hook), bytes)
    }

    /// A packet comes out of a backend.
    #[track_caller]
    pub fn reply(&mut self, id: u16, frame: &Frame) -> Outcome<Frame> {
        self.observe(Program::Backend(id), frame.clone(), &frame.bytes())
    }

    /// A frame comes out of a backend that is no plain TCP packet.
    #[track_caller]
    pub fn reply_bytes(&mut self, id: u16, bytes: &[u8]) -> Outcome<Vec<u8>> {
        self.watch(Program::Backend(id), bytes)
    }

    /// Any bytes at all meet a program.
    #[track_caller]
    pub fn watch(&mut self, program: Program, bytes: &[u8]) -> Outcome<Vec<u8>> {
        self.observe(program, bytes.to_vec(), bytes)
    }

    #[track_caller]
    fn observe<S>(&mut self, program: Program, sent: S, bytes: &[u8]) -> Outcome<S> {
        let before = self.counts();
        let ran = self.run(program, bytes);
        let deltas = self.counts().into_iter().zip(before).map(|(after, before)| after - before);
        let moved: Vec<_> = Counter::ALL.iter().copied().zip(deltas).filter(|(_, delta)| *delta > 0).collect();
        self.moved.extend(moved.iter().map(|(counter, _)| *counter));
        Outcome { program, sent, ran, moved }
    }
}

/// Bytes that were given in, whatever they are.
pub trait Sent {
    fn bytes(&self) -> Vec<u8>;
}

impl Sent for Frame {
    fn bytes(&self) -> Vec<u8> {
        Self::bytes(self)
    }
}

impl Sent for Vec<u8> {
    fn bytes(&self) -> Vec<u8> {
        self.clone()
    }
}

impl<S: Sent> Outcome<S> {
    #[track_caller]
    fn is(&self, fate: Fate, expected: &[u8], counted: Option<Counter>) {
        let expected_moves: Vec<_> = counted.into_iter().map(|counter| (counter, 1)).collect();
        let right =
            self.ran.code == fate.code(self.program) && self.ran.bytes == expected && self.moved == expected_moves;
        assert!(right, "{}", self.report(fate, expected, &expected_moves));
    }

    fn report(&self, fate: Fate, expected: &[u8], expected_moves: &[(Counter, u64)]) -> String {
        let mut text = format!("{:?}\n", self.program);
        let mut line = |name: &str, expected: &str, got: &str| {
            let mark = if expected == got { ' ' } else { '!' };
            let _ = writeln!(text, "{mark} {name}: expected {expected}\n  {name}:      got {got}");
        };
        line("code", &fate.code(self.program).to_string(), &self.ran.code.to_string());
        line("counters", &format!("{expected_moves:?}"), &format!("{:?}", self.moved));
        line("bytes", &hex(expected), &hex(&self.ran.bytes));
        let _ = writeln!(text, "  sent:           {}", hex(&self.sent.bytes()));
        let differs = expected.iter().zip(&self.ran.bytes).position(|(expected, got)| expected != got);
        let _ = writeln!(text, "  first difference at byte: {differs:?}");
        text
    }

    /// Left to the kernel, every byte as it came, for this reason.
    #[track_caller]
    pub fn passes(&self, reason: Counter) {
        self.is(Fate::Pass, &self.sent.bytes(), Some(reason));
    }

    /// Left to the kernel, every byte as it came, as no business of steer's: not even counted.
    #[track_caller]
    pub fn is_left_alone(&self) {
        self.is(Fate::Pass, &self.sent.bytes(), None);
    }

    /// Dropped as it came.
    #[track_caller]
    pub fn is_dropped(&self, reason: Counter) {
        self.is(Fate::Drop, &self.sent.bytes(), Some(reason));
    }

    /// Redirected, with these bytes.
    #[track_caller]
    pub fn leaves_as(&self, expected: &[u8], reason: Counter) {
        self.is(Fate::Redirect, expected, Some(reason));
    }
}

impl Outcome<Frame> {
    /// Sent to a backend: its address, port and MAC address in the place of the frontend's, all else as it came.
    #[track_caller]
    pub fn goes_to(&self, id: u16, reason: Counter) {
        self.goes_to_port(id, backend_addr(id).port(), reason);
    }

    /// Sent to another port of a backend than the usual one.
    #[track_caller]
    pub fn goes_to_port(&self, id: u16, port: u16, reason: Counter) {
        let target = SocketAddrV4::new(*backend_addr(id).ip(), port);
        self.redirected(&self.sent.clone().to(target).to_mac(backend_mac(id)), reason);
    }

    /// Sent to some backend, in the same way; its id.
    #[track_caller]
    pub fn goes_somewhere(&self, reason: Counter) -> u16 {
        let place = self.ran.bytes.get(32..34).map_or(0, |low| u16::from_be_bytes([low[0], low[1]]));
        self.goes_to(place, reason);
        place
    }

    /// Answered with a reset (RFC 9293, 3.10.7.1): by tc, out where it came in. XDP leaves that to tc.
    #[track_caller]
    pub fn is_reset(&self, reason: Counter) {
        if self.program == Program::Uplink(Hook::Xdp) {
            return self.passes(Counter::PassToTc);
        }
        self.redirected(&self.sent.reset(), reason);
    }

    /// A refusal that became the SYN it refused, on its way to a backend: the client's, but with room for all options.
    #[track_caller]
    pub fn becomes_syn(&self, syn: &Frame, id: u16) {
        let mut expected = syn.clone().to(backend_addr(id)).to_mac(backend_mac(id));
        expected.src_mac = self.sent.src_mac;
        expected.ip.identification = 0;
        let mut options = [0; 40];
        let used = expected.tcp.options.as_slice();
        options[..used.len()].copy_from_slice(used);
        expected.tcp.set_options_raw(&options).expect("as many as there can be");
        self.redirected(&expected, Counter::SteerRefused);
    }

    /// Likewise to some backend; its id.
    #[track_caller]
    pub fn becomes_some_syn(&self, syn: &Frame) -> u16 {
        let place = self.ran.bytes.get(32..34).map_or(0, |low| u16::from_be_bytes([low[0], low[1]]));
        self.becomes_syn(syn, place);
        place
    }

    /// Sent back to the client: the frontend in the place of the backend, all else as it came.
    #[track_caller]
    pub fn comes_from(&self, frontend: SocketAddrV4) {
        self.redirected(&self.sent.clone().from(frontend), Counter::Reply);
    }

    #[track_caller]
    fn redirected(&self, expected: &Frame, reason: Counter) {
        self.is(Fate::Redirect, &expected.bytes(), Some(reason));
        assert!(checksums_ok(&self.ran.bytes), "checksums: {}", hex(&self.ran.bytes));
    }
}

/// The headers, and how much there is behind.
fn hex(bytes: &[u8]) -> String {
    const SHOWN: usize = 100;
    let shown: String = bytes.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect();
    if bytes.len() > SHOWN { format!("{shown}... ({} bytes)", bytes.len()) } else { shown }
}
