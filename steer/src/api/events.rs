//! `/v1/events`: lines of JSON out of the history, chunk by chunk, as fast as the reader takes them.
//!
//! The agent never waits for a reader: all that is kept for one is the number of the last transition it got.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde::Deserialize;
use tokio::sync::watch;

use super::{ApiError, Event, EventLine};
use crate::model::history::History;

/// Lines per chunk: while they are written the history is locked.
const AT_ONCE: usize = 64;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Query {
    /// Only what came after that number.
    after: u64,
    /// Go on as more happens.
    follow: bool,
}

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let query = query.unwrap_or_default();
        let bad = |error| format!("bad query `{query}`: {error}; expected after=NUMBER, follow=true or follow=false");
        serde_urlencoded::from_str(query).map_err(|error| ApiError::bad_request(bad(error)))
    }
}

pub(super) fn respond(query: Query, history: watch::Receiver<History>) -> Response {
    let reader = Reader { heard: query.after, follow: query.follow, history };
    let chunks = unfold(reader, |mut reader| async {
        let chunk = reader.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(chunk)), reader))
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(chunks)).into_response()
}

/// Somebody who reads.
struct Reader {
    heard: u64,
    follow: bool,
    history: watch::Receiver<History>,
}

impl Reader {
    /// The next lines; `None` = there are no more, or there is no agent any more.
    async fn next(&mut self) -> Option<String> {
        loop {
            let lines = self.lines();
            if !lines.is_empty() {
                return Some(lines);
            }
            if !self.follow {
                return None;
            }
            self.history.changed().await.ok()?;
        }
    }

    fn lines(&mut self) -> String {
        let history = self.history.borrow_and_update();
        let news = history.after(self.heard, AT_ONCE);
        let mut text = String::new();
        let mut line = |line: &EventLine| {
            text.push_str(&serde_json::to_string(line).unwrap_or_default());
            text.push('\n');
        };
        if news.missed > 0 {
            line(&EventLine::Missed { missed: news.missed });
        }
        for (number, transition) in news.transitions {
            line(&EventLine::Event(Event::new(number, transition)));
            self.heard = number;
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::history::KEPT;
    use crate::model::history::fixtures::transition;

    #[rstest]
    #[case(None, 0, false)]
    #[case(Some(""), 0, false)]
    #[case(Some("after=7"), 7, false)]
    #[case(Some("after=7&follow=true"), 7, true)]
    #[case(Some("follow=false"), 0, false)]
    fn a_query_says_from_where_and_whether_to_go_on(
        #[case] text: Option<&str>,
        #[case] after: u64,
        #[case] follow: bool,
    ) {
        assert_eq!(Query::parse(text), Ok(Query { after, follow }));
    }

    #[rstest]
    #[case(
        "after=x",
        "bad query `after=x`: invalid digit found in string; expected after=NUMBER, follow=true or follow=false"
    )]
    #[case(
        "follow",
        "bad query `follow`: provided string was not `true` or `false`; expected after=NUMBER, follow=true or follow=false"
    )]
    #[case(
        "since=1",
        "bad query `since=1`: unknown field `since`, expected `after` or `follow`; expected after=NUMBER, follow=true or follow=false"
    )]
    fn a_bad_query_is_refused_with_the_reason(#[case] text: &str, #[case] reason: &str) {
        assert_eq!(Query::parse(Some(text)), Err(ApiError::bad_request(reason)));
    }

    fn happens(history: &watch::Sender<History>) {
        history.send_modify(|history| history.push(transition(5)));
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_how_many_it_missed_and_keeps_nobody_waiting() {
        let history = watch::Sender::<History>::default();
        let mut reader = Reader { heard: 0, follow: true, history: history.subscribe() };
        happens(&history);
        let expected = concat!(
            r#"{"number":1,"time_us":5,"service":"web","backend":"web-1","container":"abc","from":"ready","#,
            r#""to":"draining","source":"signal","cause":"signal: TERM","count":1}"#,
            "\n"
        );
        assert_eq!(reader.next().await.as_deref(), Some(expected));
        // It does not read for a while, and far more happens than is kept.
        (0..KEPT + 10).for_each(|_| happens(&history));
        let chunk = reader.next().await.unwrap();
        let mut lines = chunk.lines().map(|line| serde_json::from_str::<EventLine>(line).unwrap());
        assert_eq!(lines.next(), Some(EventLine::Missed { missed: 10 }));
        let numbers: Vec<_> = lines
            .map(|line| match line {
                EventLine::Event(event) => event.number,
                EventLine::Missed { .. } => 0,
            })
            .collect();
        assert_eq!(numbers, (12..12 + AT_ONCE as u64).collect::<Vec<_>>());
        drop(history);
        let mut last = 0;
        while let Some(chunk) = reader.next().await {
            last = chunk.lines().count();
        }
        assert!(last > 0 && reader.heard == KEPT as u64 + 11, "all that is kept, then the end: {}", reader.heard);
    }
}
