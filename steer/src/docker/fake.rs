//! A dockerd of a unit test: it answers what it is told to.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::Docker;

const VERSION: &str = r#"{"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12"}"#;

pub(super) struct Dockerd {
    pub(super) listener: UnixListener,
    pub(super) path: PathBuf,
    /// Where its socket is, if that is a place of its own.
    _dir: Option<TempDir>,
}

impl Dockerd {
    pub(super) fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let dockerd = Self::at(dir.path().join("docker.sock"));
        Self { _dir: Some(dir), ..dockerd }
    }

    pub(super) fn at(path: PathBuf) -> Self {
        Self { listener: UnixListener::bind(&path).unwrap(), path, _dir: None }
    }

    pub(super) fn client(path: &Path) -> Docker {
        Docker::at(path.to_str()).unwrap()
    }

    /// Takes the next request, and gives its first line.
    pub(super) async fn request(&self) -> (UnixStream, String) {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (stream, String::from_utf8(head).unwrap().lines().next().unwrap().to_owned())
    }

    pub(super) async fn answer_version(&self) {
        let (stream, line) = self.request().await;
        assert_eq!(line, "GET /version HTTP/1.1");
        answer(stream, "200 OK", VERSION).await;
    }

    /// Answers the version, and the head of the event stream.
    pub(super) async fn open(&self) -> UnixStream {
        self.answer_version().await;
        let (mut stream, line) = self.request().await;
        assert!(line.starts_with("GET /v1.41/events?since="), "{line}");
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        stream
    }

    /// Answers the version, then each request by its first line: what is there, what is wrong (an empty word: there is no such thing),
    /// or nothing.
    pub(super) async fn serve(&self, answers: impl Fn(&str) -> Option<Result<&'static str, &'static str>>) {
        self.answer_version().await;
        let mut unanswered = Vec::new();
        loop {
            let (stream, line) = self.request().await;
            match answers(&line) {
                Some(Ok(body)) => answer(stream, "200 OK", body).await,
                Some(Err("")) => answer(stream, "404 Not Found", r#"{"message":"no such thing"}"#).await,
                Some(Err(why)) => {
                    answer(stream, "500 Internal Server Error", &format!(r#"{{"message":"{why}"}}"#)).await;
                }
                None => unanswered.push(stream),
            }
        }
    }
}

async fn answer(mut stream: UnixStream, status: &str, body: &str) {
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    // Whoever does not wait any longer has closed it.
    stream.write_all((head + body).as_bytes()).await.ok();
}
