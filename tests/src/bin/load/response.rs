//! Reading one HTTP response: the head by hand, the body counted and thrown away.

use std::io;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const MAX_HEAD: usize = 16 << 10;

/// What the load generator wants to know of an answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) backend: String,
    pub(crate) body: u64,
    /// The server keeps the connection.
    pub(crate) stays: bool,
}

/// Reads exactly one response. `buffer` is scratch space that lives as long as the client.
pub(crate) async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Response> {
    buffer.clear();
    let end = loop {
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if buffer.len() > MAX_HEAD {
            return Err(io::Error::other("head of the answer too long"));
        }
    };
    let (mut response, length) =
        parse(&buffer[..end]).ok_or_else(|| io::Error::other("the answer is not HTTP with a length"))?;
    response.body = length;
    let mut left = length.saturating_sub((buffer.len() - end) as u64);
    buffer.resize(buffer.capacity().max(4096), 0);
    while left > 0 {
        let n = stream.read(buffer).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left = left.saturating_sub(n as u64);
    }
    Ok(response)
}

fn parse(head: &[u8]) -> Option<(Response, u64)> {
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let version = first.next()?;
    let status = first.next()?.parse().ok()?;
    let mut response = Response { status, backend: String::new(), body: 0, stays: version == "HTTP/1.1" };
    let mut length = None;
    for (key, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if key.eq_ignore_ascii_case("content-length") {
            length = value.parse().ok();
        } else if key.eq_ignore_ascii_case("x-backend") {
            value.clone_into(&mut response.backend);
        } else if key.eq_ignore_ascii_case("connection") {
            response.stays = !value.eq_ignore_ascii_case("close");
        }
    }
    Some((response, length?))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_head_tells_status_backend_length_and_whether_it_stays() {
        let head = b"HTTP/1.1 200 OK\r\nx-backend: web-1\r\nContent-Length: 7\r\nConnection: close\r\n\r\n";
        let (response, length) = parse(head).unwrap();
        assert_eq!((response.status, response.backend.as_str(), response.stays, length), (200, "web-1", false, 7));
    }

    #[test]
    fn a_head_without_a_length_is_not_understood() {
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_none());
    }
}
