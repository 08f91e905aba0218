//! The agent's end of the socket: turns HTTP requests into [`Request`]s for the agent's loop.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use steer_common::limits::MAX_WEIGHT;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};

use super::events::{self, Query};
use super::{Action, ApiError, Detach, ErrorBody, NewWeight, Request, Target, routes};
use crate::dataplane::paths::Paths;
use crate::model::history::History;

/// The agent's loop answers within milliseconds, unless it is stuck.
const PATIENCE: Duration = Duration::from_secs(20);

/// Serves the instance's socket until dropped.
pub async fn serve(paths: &Paths, tx: mpsc::Sender<Request>, history: watch::Receiver<History>) -> anyhow::Result<()> {
    let listener = bind(paths).await?;
    axum::serve(listener, router(tx, history)).await.with_context(|| format!("cannot serve {}", paths.socket.display()))
}

/// A listener that only root may connect to. It takes the place of what a dead agent left, in one step, never that of a
/// living one.
async fn bind(paths: &Paths) -> anyhow::Result<UnixListener> {
    let socket = &paths.socket;
    if UnixStream::connect(socket).await.is_ok() {
        bail!("another agent answers at {}", socket.display());
    }
    let directory = socket.parent().context("the socket has no directory")?;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let fresh = socket.with_extension("new");
    let bound = || {
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
        std::fs::rename(&fresh, socket)?;
        Ok(listener)
    };
    bound().with_context(|| format!("cannot listen on {}", socket.display()))
}

fn router(tx: mpsc::Sender<Request>, history: watch::Receiver<History>) -> Router {
    let answer = async move |uri: Uri| Query::parse(uri.query()).map(|query| events::respond(query, history));
    Router::new()
        .route(routes::EVENTS, get(answer))
        .route(routes::STATUS, get(async |agent: Agent| ask(agent, Ok(Action::Status)).await))
        .route(routes::DRAIN, post(async |agent: Agent, body: Bytes| ask(agent, drain(&body)).await))
        .route(routes::UNDRAIN, post(async |agent: Agent, body: Bytes| ask(agent, undrain(&body)).await))
        .route(routes::WEIGHT, post(async |agent: Agent, body: Bytes| ask(agent, weight(&body)).await))
        .route(routes::DETACH, post(async |agent: Agent, body: Bytes| ask(agent, detach(&body)).await))
        .fallback(async || ApiError::not_found("no such route"))
        .method_not_allowed_fallback(async || ApiError { status: 405, message: "wrong method for this route".into() })
        .with_state(tx)
}

type Agent = State<mpsc::Sender<Request>>;

async fn ask(State(tx): Agent, action: Result<Action, ApiError>) -> Result<Response, ApiError> {
    let (reply, answer) = oneshot::channel();
    let request = Request { action: action?, reply };
    let exchange = async {
        tx.send(request).await.map_err(|_| ApiError::unavailable("the agent is ending"))?;
        answer.await.map_err(|_| ApiError::unavailable("the agent is ending"))?
    };
    let value = tokio::time::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| ApiError::unavailable(format!("the agent did not answer within {} s", PATIENCE.as_secs())))??;
    Ok(axum::Json(value).into_response())
}

fn drain(body: &[u8]) -> Result<Action, ApiError> {
    parse(body).map(|Target { target }| Action::Drain { target })
}

fn undrain(body: &[u8]) -> Result<Action, ApiError> {
    parse(body).map(|Target { target }| Action::Undrain { target })
}

fn weight(body: &[u8]) -> Result<Action, ApiError> {
    let NewWeight { target, weight } = parse(body)?;
    match weight {
        Some(weight) if weight > MAX_WEIGHT => {
            Err(ApiError::bad_request(format!("weight {weight}: expected 0 to {MAX_WEIGHT}, or null")))
        }
        _ => Ok(Action::Weight { target, weight }),
    }
}

fn detach(body: &[u8]) -> Result<Action, ApiError> {
    parse(body).map(|Detach { now }| Action::Detach { now })
}

/// Bodies are read whatever their content type says: `curl -d` sends another one.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::bad_request(format!("bad request body: {error}")))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, message } = self;
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::Json(ErrorBody { error: message });
        (status, [(header::CACHE_CONTROL, "no-store")], body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn target() -> String {
        "web-1".into()
    }

    #[rstest]
    #[case(drain(br#"{"target":"web-1"}"#), Action::Drain { target: target() })]
    #[case(undrain(br#"{"target":"web-1"}"#), Action::Undrain { target: target() })]
    #[case(weight(br#"{"target":"web-1","weight":5}"#), Action::Weight { target: target(), weight: Some(5) })]
    #[case(weight(br#"{"target":"web-1","weight":null}"#), Action::Weight { target: target(), weight: None })]
    #[case(detach(br#"{"now":true}"#), Action::Detach { now: true })]
    fn bodies_become_actions(#[case] parsed: Result<Action, ApiError>, #[case] expected: Action) {
        assert_eq!(parsed, Ok(expected));
    }

    #[rstest]
    #[case(drain(b""), "EOF")]
    #[case(drain(br#"{"target":5}"#), "expected a string")]
    #[case(drain(br#"{"target":"web-1","wait":true}"#), "unknown field `wait`")]
    #[case(weight(br#"{"target":"web-1"}"#), "missing field `weight`")]
    #[case(weight(br#"{"target":"web-1","weight":257}"#), "weight 257: expected 0 to 256, or null")]
    #[case(detach(b"{}"), "missing field `now`")]
    fn bad_bodies_are_refused_with_the_reason(#[case] parsed: Result<Action, ApiError>, #[case] reason: &str) {
        let error = parsed.unwrap_err();
        assert_eq!(error.status, 400);
        assert!(error.message.contains(reason), "{}", error.message);
    }
}
