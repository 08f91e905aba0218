//! Listening sockets from `/proc/net/tcp`, for kernels without socket diagnostics: slower by as much as the machine has
//! memory, because the kernel walks the table of all connections of all namespaces.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::accepts;

/// State of a listening socket.
const LISTEN: &str = "0A";

/// As [`super::is_listening_in`], in the namespace of the calling thread. That a socket is bound to IPv6 only is not
/// visible here.
pub(super) fn is_listening(address: IpAddr, port: u16) -> io::Result<bool> {
    let directory = Path::new("/proc/thread-self/net");
    Ok(listens(BufReader::new(File::open(directory.join("tcp"))?), address, port)?
        || match File::open(directory.join("tcp6")) {
            Ok(table) => listens(BufReader::new(table), address, port)?,
            // IPv6 is switched off.
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        })
}

/// Reads the table's head only: the kernel writes listening sockets first, thousands of connections may follow.
fn listens(table: impl BufRead, address: IpAddr, port: u16) -> io::Result<bool> {
    for line in table.lines().skip(1) {
        let line = line?;
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next().and_then(socket_address), fields.nth(1));
        if state != Some(LISTEN) {
            return Ok(false);
        }
        if local.is_some_and(|(local, local_port)| local_port == port && accepts(local, false, address)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `0100007F:1F90`: each four bytes of the address as a number in this machine's byte order, the port as a plain
/// number.
fn socket_address(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn table(rows: &[&str]) -> String {
        let row = |row: &&str| {
            format!("   0: {row} 00000000:00000000 00:00000000 00000000     0        0 22 1 0 100 0 0 10 0\n")
        };
        HEAD.to_owned() + &rows.iter().map(row).collect::<String>()
    }

    #[test]
    fn a_port_is_listened_on() {
        let container = "172.17.0.2".parse().unwrap();
        for (sentence, row, expected) in [
            ("every IPv4 address", "00000000:1388 00000000:0000 0A", true),
            ("the container's address", "020011AC:1388 00000000:0000 0A", true),
            ("another address of the container", "030011AC:1388 00000000:0000 0A", false),
            ("loopback", "0100007F:1388 00000000:0000 0A", false),
            ("another port", "00000000:1389 00000000:0000 0A", false),
            ("a connection, no listener", "020011AC:1388 010011AC:9C40 01", false),
            (
                "every address, IPv6 socket",
                "00000000000000000000000000000000:1388 00000000000000000000000000000000:0000 0A",
                true,
            ),
            ("IPv6 loopback", "00000000000000000000000001000000:1388 00000000000000000000000000000000:0000 0A", false),
            (
                "the address, mapped",
                "0000000000000000FFFF0000020011AC:1388 00000000000000000000000000000000:0000 0A",
                true,
            ),
            (
                "loopback, mapped",
                "0000000000000000FFFF00000100007F:1388 00000000000000000000000000000000:0000 0A",
                false,
            ),
            ("nonsense", "zz:1388 00000000:0000 0A", false),
        ] {
            assert_eq!(listens(table(&[row]).as_bytes(), container, 5000).unwrap(), expected, "{sentence}");
        }
    }

    #[test]
    fn an_ipv4_socket_takes_no_ipv6_connection() {
        let rows = table(&["00000000:1388 00000000:0000 0A"]);
        assert!(!listens(rows.as_bytes(), "fd00::2".parse().unwrap(), 5000).unwrap());
    }

    #[test]
    fn reading_stops_where_the_listeners_end() {
        let listener = "00000000:1388 00000000:0000 0A";
        let connection = "020011AC:1388 010011AC:9C40 01";
        let address = "172.17.0.2".parse().unwrap();
        assert!(
            listens(table(&["00000000:1389 00000000:0000 0A", listener, connection]).as_bytes(), address, 5000)
                .unwrap()
        );
        assert!(!listens(table(&[connection, listener]).as_bytes(), address, 5000).unwrap());
        assert!(!listens(HEAD.as_bytes(), address, 5000).unwrap());
        assert!(!listens(&b""[..], address, 5000).unwrap());
    }
}
