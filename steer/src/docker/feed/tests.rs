use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::*;
use crate::docker::EventKind;
use crate::docker::fake::Dockerd;

fn event(id: &str) -> String {
    let actor = format!(r#"{{"ID":"{id}","Attributes":{{"steer.port":"80:80"}}}}"#);
    format!(r#"{{"Type":"container","Action":"start","Actor":{actor},"timeNano":1}}"#) + "\n"
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
    let dockerd = Dockerd::start();
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
    let dockerd = Dockerd::start();
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
    let dockerd = Dockerd::start();
    let mut feed = Dockerd::client(&dockerd.path).subscribe();
    let mut stream = dockerd.open().await;
    let burst = event("a").repeat(CAPACITY + 100);
    stream.write_all(format!("{:x}\r\n{burst}\r\n", burst.len()).as_bytes()).await.ok();
    // Whoever reads for it hangs up.
    let hung_up = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0])).await;
    hung_up.expect("the reader hangs up when it is behind").ok();
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
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("docker.sock");
    let mut feed = Dockerd::client(&path).subscribe();
    let Feed::Lost(error) = feed.next().await else { panic!("expected a loss") };
    let error = format!("{error:#}");
    assert!(error.contains("is Docker running?") && error.contains("No such file"), "{error}");
    let again = tokio::time::timeout(Duration::from_millis(400), feed.next()).await;
    assert!(again.is_err(), "told twice: {again:?}");

    let dockerd = Dockerd::at(path);
    let _stream = dockerd.open().await;
    assert!(matches!(feed.next().await, Feed::Connected(_)));
}

#[tokio::test]
async fn a_reader_that_fails_is_told_and_starts_anew() {
    let dockerd = Dockerd::start();
    let mut feed = Dockerd::client(&dockerd.path).subscribe();
    let _stream = dockerd.open().await;
    assert!(matches!(feed.next().await, Feed::Connected(_)));
    feed.reader.abort();
    assert!(matches!(feed.next().await, Feed::Lost(_)));
    let _stream = dockerd.open().await;
    assert!(matches!(feed.next().await, Feed::Connected(_)));
}
