//! Client ports that are used and used again.

use std::io;
use std::net::SocketAddr;
use std::str::FromStr;

use tokio::net::TcpSocket;

/// `LOW-HIGH`, both included.
#[derive(Clone, Debug)]
pub(crate) struct PortRange {
    low: u16,
    high: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('-').and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
        match parsed {
            Some((low, high)) if 0 < low && low <= high => Ok(Self { low, high }),
            _ => Err(format!("'{text}' is not LOW-HIGH, as in 20000-20099")),
        }
    }
}

/// One client's share of the range, taken in turn. Shares do not overlap, so two clients never want the same port at
/// once.
pub(crate) struct Ports {
    ports: Vec<u16>,
    next: usize,
}

impl Ports {
    pub(crate) fn share(range: &PortRange, client: u16, clients: u16) -> Self {
        let first = range.low.saturating_add(client);
        let mut ports: Vec<u16> = (first..=range.high).step_by(clients.into()).collect();
        if ports.is_empty() {
            // More clients than ports: two clients share one, and the one that comes second waits for its turn.
            ports.push(range.low + client % (range.high - range.low + 1));
        }
        Self { ports, next: 0 }
    }

    /// Binds to the next port that can be bound; one is still taken while its last connection closes.
    pub(crate) fn bind(&mut self, socket: &TcpSocket, target: SocketAddr) -> io::Result<()> {
        socket.set_reuseaddr(true)?;
        let any = match target {
            SocketAddr::V4(_) => std::net::IpAddr::from([0; 4]),
            SocketAddr::V6(_) => std::net::IpAddr::from([0; 16]),
        };
        let mut outcome = Err(io::ErrorKind::AddrInUse.into());
        for _ in 0..self.ports.len() {
            let port = self.ports[self.next];
            self.next = (self.next + 1) % self.ports.len();
            outcome = socket.bind(SocketAddr::new(any, port));
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }
}
