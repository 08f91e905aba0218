//! A command's end of the socket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{AgentStatus, Changed, Detach, Detaching, Drained, ErrorBody, EventLine, NewWeight, Target, routes};
use crate::dataplane::paths::Paths;

/// A little more than the agent's own patience with itself.
const PATIENCE: Duration = Duration::from_secs(25);

/// Why the agent did not do it.
#[derive(thiserror::Error, Debug)]
pub enum ClientError {
    /// There is no socket, or nobody behind it.
    #[error(
        "no steer agent is running (instance {instance}): start it with `steer run`; \
         without it, packets are steered as before, but nothing can be changed"
    )]
    NotRunning {
        /// Whose agent was looked for.
        instance: String,
    },
    /// The socket is root's.
    #[error("not allowed to talk to the agent at {}: run as root", socket.display())]
    Denied { socket: PathBuf },
    /// The socket is there and cannot be connected to.
    #[error("cannot reach the agent at {}", socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    /// The agent took the request, and time is over.
    #[error("the agent at {} did not answer within {} s", socket.display(), PATIENCE.as_secs())]
    Silent { socket: PathBuf },
    /// The agent ended meanwhile, or does not speak HTTP.
    #[error("the connection to the agent at {} broke", socket.display())]
    Broken { socket: PathBuf, source: hyper::Error },
    /// The answer is not what was expected.
    #[error("cannot understand the agent at {}: is it another version?", socket.display())]
    Foreign { socket: PathBuf, source: serde_json::Error },
    /// It did not do it, in its own words.
    #[error("{0}")]
    Refused(String),
}

/// A connection to an agent.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects to the agent of an instance. Fails where none answers, or this user may not ask it.
    pub async fn connect(paths: &Paths) -> Result<Self, ClientError> {
        let socket = paths.socket.clone();
        let stream = match UnixStream::connect(&socket).await {
            Ok(stream) => stream,
            Err(source) => {
                return Err(match source.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                        ClientError::NotRunning { instance: paths.instance.clone() }
                    }
                    io::ErrorKind::PermissionDenied => ClientError::Denied { socket },
                    _ => ClientError::Unreachable { socket, source },
                });
            }
        };
        match handshake(TokioIo::new(stream)).await {
            Ok((sender, connection)) => {
                // Ends with the client; what goes wrong in between is told by the request.
                tokio::spawn(connection);
                Ok(Self { socket, sender })
            }
            Err(source) => Err(ClientError::Broken { socket, source }),
        }
    }

    /// What only the agent knows. Fails, as all that follow, when the agent goes silent or away; nothing has changed then, or
    /// nobody can tell.
    pub async fn status(&mut self) -> Result<AgentStatus, ClientError> {
        self.send(Method::GET, routes::STATUS, Bytes::new()).await
    }

    /// Takes a container out: its flows go on, it gets no new ones. Refused if `target` names none or several.
    pub async fn drain(&mut self, target: &str) -> Result<Drained, ClientError> {
        self.post(routes::DRAIN, &Target { target: target.into() }).await
    }

    /// Takes a drained container back in. Refused if `target` names none or several.
    pub async fn undrain(&mut self, target: &str) -> Result<Changed, ClientError> {
        self.post(routes::UNDRAIN, &Target { target: target.into() }).await
    }

    /// Changes a container's share of new flows, `0..=256`; `None` = back to the label's. Refused if `target` names none or
    /// several, or the weight is no such number.
    pub async fn weight(&mut self, target: &str, weight: Option<u16>) -> Result<Changed, ClientError> {
        self.post(routes::WEIGHT, &NewWeight { target: target.into(), weight }).await
    }

    /// What has happened after that number; with `follow` also what happens from now on.
    pub async fn events(mut self, after: u64, follow: bool) -> Result<Events, ClientError> {
        let route = format!("{}?after={after}&follow={follow}", routes::EVENTS);
        let exchange = self.request(Method::GET, &route, Bytes::new());
        let (status, body) = match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(answer) => answer.map_err(|source| self.broken(source))?,
            Err(_) => return Err(ClientError::Silent { socket: self.socket }),
        };
        if status.is_success() {
            return Ok(Events { client: self, body, buffer: Vec::new() });
        }
        let body = body.collect().await.map_err(|source| self.broken(source))?;
        Err(refused(status, &body.to_bytes()))
    }

    /// Takes steer off this host: at once, or after the last flow. Returns before that; with `now` too.
    pub async fn detach(&mut self, now: bool) -> Result<Detaching, ClientError> {
        self.post(routes::DETACH, &Detach { now }).await
    }

    async fn post<T: DeserializeOwned>(&mut self, route: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|source| self.foreign(source))?;
        self.send(Method::POST, route, body.into()).await
    }

    async fn send<T: DeserializeOwned>(&mut self, method: Method, route: &str, body: Bytes) -> Result<T, ClientError> {
        let exchange = async {
            let (status, body) = self.request(method, route, body).await?;
            Ok((status, body.collect().await?.to_bytes()))
        };
        let (status, body) = match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(answer) => answer.map_err(|source| self.broken(source))?,
            Err(_) => return Err(ClientError::Silent { socket: self.socket.clone() }),
        };
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|source| self.foreign(source));
        }
        Err(refused(status, &body))
    }

    async fn request(
        &mut self,
        method: Method,
        route: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Incoming), hyper::Error> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = route.parse().unwrap_or_default();
        request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("steer"));
        request.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        let response = self.sender.send_request(request).await?;
        Ok((response.status(), response.into_body()))
    }

    fn broken(&self, source: hyper::Error) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), source }
    }

    fn foreign(&self, source: serde_json::Error) -> ClientError {
        ClientError::Foreign { socket: self.socket.clone(), source }
    }
}

/// In the agent's words, if it has any.
fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    ClientError::Refused(match serde_json::from_slice(body) {
        Ok(ErrorBody { error }) => error,
        Err(_) => format!("the agent answered {status}"),
    })
}

/// What has happened, line by line.
#[derive(Debug)]
pub struct Events {
    client: Client,
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    /// The next ones, at least one; none = the agent has no more, or has ended.
    pub async fn next(&mut self) -> Result<Vec<EventLine>, ClientError> {
        loop {
            let Some(frame) = self.body.frame().await else { return Ok(Vec::new()) };
            let frame = frame.map_err(|source| self.client.broken(source))?;
            self.buffer.extend_from_slice(frame.data_ref().map(AsRef::as_ref).unwrap_or_default());
            let Some(end) = self.buffer.iter().rposition(|byte| *byte == b'\n') else { continue };
            let whole: Vec<u8> = self.buffer.drain(..=end).collect();
            let lines = whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            return lines
                .map(|line| serde_json::from_slice(line).map_err(|source| self.client.foreign(source)))
                .collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use serde_json::json;
    use tempfile::TempDir;
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::api::{Action, ApiError, server};
    use crate::model::history::History;
    use crate::model::history::fixtures::transition;

    fn paths(run: &TempDir) -> Paths {
        Paths::under(Path::new("/nonexistent"), run.path(), "steer")
    }

    /// An agent that knows one container.
    fn agent(paths: Paths) -> tokio::task::JoinHandle<()> {
        let (tx, mut rx) = mpsc::channel(8);
        tokio::spawn(async move {
            let history = watch::Sender::default();
            let heard = history.subscribe();
            let serving = tokio::spawn(async move { server::serve(&paths, tx, heard).await });
            while let Some(request) = rx.recv().await {
                let answer = match request.action {
                    Action::Status => Ok(json!({
                        "pid": 7, "version": "0.1.0", "since": "2026-01-01T00:00:00Z", "docker": null, "attach": [],
                        "problems": [{"container": "web-2", "label": "steer.port", "message": "no"}]
                    })),
                    Action::Drain { target } if target == "web-1" => {
                        Ok(json!({"backends": [{"id": 3, "name": "web-1", "drain_ms": 30000}]}))
                    }
                    Action::Weight { weight, .. } => Ok(json!({
                        "backends": [{"id": 3, "name": "web-1", "state": "ready", "weight": weight.unwrap_or(1)}]
                    })),
                    other => Err(ApiError::not_found(format!("no such container: {other:?}"))),
                };
                let _ = request.reply.send(answer);
            }
            serving.abort();
        })
    }

    async fn connected(paths: &Paths) -> Client {
        for _ in 0..200 {
            match Client::connect(paths).await {
                Ok(client) => return client,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        panic!("no agent at {}", paths.socket.display());
    }

    #[tokio::test]
    async fn requests_reach_the_agent_and_its_answers_come_back() {
        let run = TempDir::new().unwrap();
        let agent = agent(paths(&run));
        let mut client = connected(&paths(&run)).await;
        assert_eq!(std::fs::metadata(paths(&run).socket).unwrap().permissions().mode() & 0o777, 0o600);

        let status = client.status().await.unwrap();
        assert_eq!((status.pid, status.problems[0].label.as_deref()), (7, Some("steer.port")));
        assert_eq!(client.drain("web-1").await.unwrap().backends[0].drain_ms, 30_000);
        assert_eq!(client.weight("web-1", None).await.unwrap().backends[0].weight, 1);
        assert_eq!(client.weight("web-1", Some(9)).await.unwrap().backends[0].weight, 9);

        let error = client.weight("web-1", Some(300)).await.unwrap_err();
        assert_eq!(error.to_string(), "weight 300: expected 0 to 256, or null", "as the agent said it");
        let error = client.drain("web-9").await.unwrap_err();
        assert!(error.to_string().starts_with("no such container"), "{error}");
        agent.abort();
    }

    #[tokio::test]
    async fn a_dead_agent_is_named_with_the_remedy_and_its_socket_is_taken_over() {
        let run = TempDir::new().unwrap();
        let paths = paths(&run);
        assert!(matches!(Client::connect(&paths).await, Err(ClientError::NotRunning { .. })), "no socket");

        std::fs::create_dir_all(paths.socket.parent().unwrap()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&paths.socket).unwrap());
        let error = Client::connect(&paths).await.unwrap_err();
        assert!(error.to_string().contains("start it with `steer run`"), "a stale socket: {error}");

        let agent = agent(paths.clone());
        assert_eq!(connected(&paths).await.status().await.unwrap().pid, 7);

        let (tx, _rx) = mpsc::channel(1);
        let error = server::serve(&paths, tx, watch::Sender::default().subscribe()).await.unwrap_err();
        assert!(error.to_string().starts_with("another agent answers"), "{error}");
        agent.abort();
    }

    #[tokio::test]
    async fn events_come_as_they_happen_and_end_with_the_agent() {
        let run = TempDir::new().unwrap();
        let history = watch::Sender::<History>::default();
        let (tx, _rx) = mpsc::channel(1);
        let (agents, heard) = (paths(&run), history.subscribe());
        let serving = tokio::spawn(async move { server::serve(&agents, tx, heard).await });
        let happens = |at| history.send_modify(|history| history.push(transition(at)));
        let times = |lines: Vec<EventLine>| -> Vec<_> {
            let time = |line: &EventLine| if let EventLine::Event(event) = line { event.time_us } else { 0 };
            lines.iter().map(time).collect()
        };
        happens(7);
        let mut follow = connected(&paths(&run)).await.events(0, true).await.unwrap();
        assert_eq!(times(follow.next().await.unwrap()), [7]);
        happens(8);
        assert_eq!(times(follow.next().await.unwrap()), [8]);
        let mut rest = connected(&paths(&run)).await.events(1, false).await.unwrap();
        assert_eq!(times(rest.next().await.unwrap()), [8], "what came after the first");
        assert_eq!(rest.next().await.unwrap(), []);

        drop(history);
        assert_eq!(follow.next().await.unwrap(), [], "no agent, no events");
        serving.abort();
    }

    #[tokio::test]
    async fn unknown_routes_and_methods_are_refused() {
        let run = TempDir::new().unwrap();
        let agent = agent(paths(&run));
        let mut client = connected(&paths(&run)).await;
        let error = client.send::<AgentStatus>(Method::GET, "/v2/status", Bytes::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "no such route");
        let error = client.send::<AgentStatus>(Method::GET, routes::DRAIN, Bytes::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "wrong method for this route");
        agent.abort();
    }
}
