//! The greeter's HTTP: heads only, no bodies from the client, pipelining and both kinds of keep-alive.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::App;

const MAX_HEAD: usize = 8192;
static FILLER: [u8; 65536] = [b'.'; 65536];

/// Serves one connection until one side has had enough.
pub(crate) async fn serve(app: &App, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(1024);
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if buffer.len() > MAX_HEAD || stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        if !answer(app, &mut stream, peer, &head).await? {
            // Read to the client's end (bounded), so that closing cannot turn into a reset that eats the answer.
            stream.shutdown().await?;
            drop(timeout(Duration::from_secs(1), stream.read_buf(&mut buffer)).await);
            return Ok(());
        }
    }
}

/// Answers one request; says whether the connection stays open.
async fn answer(app: &App, stream: &mut TcpStream, peer: SocketAddr, head: &str) -> io::Result<bool> {
    let mut lines = head.split("\r\n");
    let mut request = lines.next().unwrap_or_default().split(' ');
    let (method, path, version) = (request.next(), request.next().unwrap_or("/"), request.next());
    let wish = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case("connection"))
        .map(|(_, value)| value.trim().to_ascii_lowercase());
    let wants_more = match version {
        Some("HTTP/1.1") => wish.as_deref() != Some("close"),
        _ => wish.as_deref() == Some("keep-alive"),
    };
    let stays = wants_more && !app.leaving.get() && method == Some("GET");
    let greeting = || format!("{} {} {peer}\n", app.version, app.name);
    let (status, body, filler) = match (method, path) {
        (Some("GET"), "/healthz") if app.unhealthy.get() => ("503 Service Unavailable", "unhealthy\n".to_owned(), 0),
        (Some("GET"), "/healthz") => ("200 OK", "ok\n".to_owned(), 0),
        // Without a word to anybody: what is open is cut by the kernel.
        (Some("GET"), "/crash") => std::process::exit(70),
        (Some("GET"), "/oom") => eat_memory(),
        (Some("GET"), path) => match path.strip_prefix("/bytes/").map(str::parse::<u64>) {
            None => ("200 OK", greeting(), 0),
            Some(Ok(n)) => ("200 OK", String::new(), n),
            Some(Err(_)) => ("400 Bad Request", "not a number\n".to_owned(), 0),
        },
        _ => ("405 Method Not Allowed", "only GET\n".to_owned(), 0),
    };
    let length = body.len() as u64 + filler;
    let connection = if stays { "keep-alive" } else { "close" };
    let response = format!(
        "HTTP/1.1 {status}\r\nX-Backend: {}\r\nX-Version: {}\r\nContent-Type: text/plain\r\n\
         Content-Length: {length}\r\nConnection: {connection}\r\n\r\n{body}",
        app.name, app.version
    );
    stream.write_all(response.as_bytes()).await?;
    let mut left = filler;
    while left > 0 {
        let n = left.min(FILLER.len() as u64);
        stream.write_all(&FILLER[..n as usize]).await?;
        left -= n;
    }
    Ok(stays)
}

/// Takes memory until the kernel has had enough.
fn eat_memory() -> ! {
    let mut eaten = Vec::new();
    loop {
        // Not zeros: those pages would be given when they are written to, which is never.
        eaten.push(vec![1_u8; 1 << 20]);
    }
}
