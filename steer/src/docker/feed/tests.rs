use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::docker::EventKind;

const VERSION: &str = r#"{"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12"}"#;

fn event(id: &str) -> String {
    let actor = format!(r#"{{"ID":"{id}","Attributes":{{"steer.port":"80:80"}}}}"#);
    format!(r#"{{"Type":"container","Action":"start","Actor":{actor},"timeNano":1}}"#) + "\n"
}

/// A dockerd that is asked for its version, then for its events.
struct Dockerd {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).ok();
    }
}

impl Dockerd {
    fn start(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("steer-feed-{}-{name}.sock", std::process::id()));
        Self { listener: UnixListener::bind(&path).unwrap(), path }
    }

    fn client(path: &Path) -> Docker {
        Docker::at(path.to_str()).unwrap()
    }

    /// Takes the next request, and gives its first line.
    async fn request(&self) -> (UnixStream, String) {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (stream, String::from_utf8(head).unwrap().lines().next().unwrap().to_owned())
    }

    async fn answer_version(&self) {
        let (mut stream, line) = self.request().await;
        assert_eq!(line, "GET /version HTTP/1.1");
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", VERSION.len());
        stream.write_all((head + VERSION).as_bytes()).await.unwrap();
    }

    /// Answers the version, and the head of the event stream.
    async fn open(&self) -> UnixStream {
        self.answer_version().await;
        let (mut stream, line) = self.request().await;
        assert!(line.starts_with("GET /v1.41/events?since="), "{line}");
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        stream
    }
}

async fn chunk(stream: &mut UnixStream, text: &str) {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await.unwrap();
}

async fn next_id(feed: &mut Subscription) -> String {
    match feed.next().await {
        Feed::Event(Event { container, kind: EventKind::Start, .. }) => container.0,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn connected_means_the_head_is_there_and_lost_reconnects() {
    let dockerd = Dockerd::start("reconnect");
    let mut feed = Dockerd::client(&dockerd.path).subscribe();

    dockerd.answer_version().await;
    let (mut stream, _) = dockerd.request().await;
    let early = tokio::time::timeout(Duration::from_millis(50), feed.next()).await;
    assert!(early.is_err(), "no answer yet, but {early:?}");
    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    assert!(matches!(feed.next().await, Feed::Connected(_)));

    chunk(&mut stream, &event("a")).await;
    assert_eq!(next_id(&mut feed).await, "a");
    drop(stream);
    assert!(matches!(feed.next().await, Feed::Lost(_)));

    let mut stream = dockerd.open().await;
    assert!(matches!(feed.next().await, Feed::Connected(_)));
    chunk(&mut stream, &event("b")).await;
    assert_eq!(next_id(&mut feed).await, "b");
}

#[tokio::test]
async fn lines_are_put_together_from_any_pieces() {
    let dockerd = Dockerd::start("pieces");
    let mut feed = Dockerd::client(&dockerd.path).subscribe();
    let mut stream = dockerd.open().await;
    assert!(matches!(feed.next().await, Feed::Connected(_)));
    let text = event("a") + "\r\n\n" + &event("b") + &event("c");
    for piece in text.as_bytes().chunks(7) {
        chunk(&mut stream, std::str::from_utf8(piece).unwrap()).await;
    }
    for id in ["a", "b", "c"] {
        assert_eq!(next_id(&mut feed).await, id);
    }
    chunk(&mut stream, &(event("d") + "rubbish\n")).await;
    assert_eq!(next_id(&mut feed).await, "d");
    assert!(matches!(feed.next().await, Feed::Lost(_)), "what is not understood is a loss");
}

#[tokio::test]
async fn an_agent_that_falls_behind_is_told_so() {
    let dockerd = Dockerd::start("behind");
    let mut feed = Dockerd::client(&dockerd.path).subscribe();
    let mut stream = dockerd.open().await;
    let burst = event("a").repeat(CAPACITY + 100);
    stream.write_all(format!("{:x}\r\n{burst}\r\n", burst.len()).as_bytes()).await.ok();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(matches!(feed.next().await, Feed::Connected(_)));
    let mut events = 0;
    let lost = loop {
        match feed.next().await {
            Feed::Event(_) => events += 1,
            Feed::Lost(error) => break error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert!(events >= CAPACITY - 1, "{events}");
    assert!(lost.contains("behind"), "{lost}");
}

#[tokio::test]
async fn an_absent_docker_is_told_once_and_awaited() {
    let dockerd = Dockerd::start("absent");
    let path = dockerd.path.clone();
    drop(dockerd);
    let mut feed = Dockerd::client(&path).subscribe();
    let Feed::Lost(error) = feed.next().await else { panic!("expected a loss") };
    let error = format!("{error:#}");
    assert!(error.contains("is Docker running?") && error.contains("No such file"), "{error}");
    let again = tokio::time::timeout(Duration::from_millis(400), feed.next()).await;
    assert!(again.is_err(), "told twice: {again:?}");

    let dockerd = Dockerd { listener: UnixListener::bind(&path).unwrap(), path };
    let _stream = dockerd.open().await;
    assert!(matches!(feed.next().await, Feed::Connected(_)));
}

#[tokio::test]
async fn a_reader_that_fails_is_told_and_starts_anew() {
    let dockerd = Dockerd::start("failed");
    let mut feed = Dockerd::client(&dockerd.path).subscribe();
    let _stream = dockerd.open().await;
    assert!(matches!(feed.next().await, Feed::Connected(_)));
    feed.reader.abort();
    assert!(matches!(feed.next().await, Feed::Lost(_)));
    let _stream = dockerd.open().await;
    assert!(matches!(feed.next().await, Feed::Connected(_)));
}

#[tokio::test]
async fn a_container_that_is_not_described_does_not_drop_the_list() {
    let dockerd = Dockerd::start("list");
    let docker = Dockerd::client(&dockerd.path);
    let serve = async {
        dockerd.answer_version().await;
        // Two lists, three containers, and what it knows of a swarm.
        for _ in 0..6 {
            let (mut stream, line) = dockerd.request().await;
            let (status, body) = match line.split(['/', '?']).nth(3).unwrap() {
                "json" => ("200 OK", r#"[{"Id":"good"},{"Id":"bad"},{"Id":"gone"}]"#),
                "good" => ("200 OK", r#"{"Id":"good","State":{"Running":true,"Pid":7}}"#),
                "gone" => ("404 Not Found", r#"{"message":"no such container"}"#),
                _ => ("500 Internal Server Error", r#"{"message":"out of order"}"#),
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\n");
            let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    };
    let (listed, ()) = tokio::join!(docker.containers(), serve);
    let listed = listed.unwrap();
    let ids: Vec<_> = listed.containers.iter().map(|container| container.id.0.as_str()).collect();
    assert_eq!(ids, ["good"]);
    let [(id, error)] = listed.unknown.as_slice() else { panic!("{listed:?}") };
    assert_eq!(id.0, "bad");
    assert!(format!("{error:#}").contains("out of order"), "{error:#}");
    assert!(listed.swarm.swarm.is_err(), "{listed:?}");
}
