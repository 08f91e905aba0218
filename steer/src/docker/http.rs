//! Requests over Docker's socket.
//!
//! Bollard has connectors of its own, but they name no API version in the path (0.21), so that the newest one of the
//! daemon answers, and they do not tell when the head of a stream's response has come. Thirty lines over hyper do both.

use std::fmt;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, bail};
use bollard::{BollardRequest, ClientVersion};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::{ApiVersion, TIMEOUT};

pub(super) const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// What is not left as it is in a query: all but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// No answer that is read whole is longer.
const MAX_BODY: usize = 16 * 1024 * 1024;

/// Where a Docker daemon listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Host {
    Unix(PathBuf),
    /// Host and port, no TLS: a socket proxy on this machine.
    Tcp(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

impl Host {
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        if let Some(path) = text.strip_prefix("unix://").or(Some(text).filter(|text| text.starts_with('/')))
            && path.starts_with('/')
        {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let address =
            text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://")).map(|rest| rest.trim_end_matches('/'));
        match address {
            Some(address) if address.contains(':') && !address.contains('/') => Ok(Self::Tcp(address.to_owned())),
            _ => bail!(
                "Docker host `{text}` is not understood: expected unix:///path/to/docker.sock or tcp://address:port \
                 (steer runs on the Docker host itself, so neither ssh:// nor TLS is needed)"
            ),
        }
    }

    /// Sends one request over a connection of its own, and returns once the head of the response is there.
    pub(super) async fn send<B>(&self, mut request: Request<B>) -> io::Result<Response<Incoming>>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        request.headers_mut().insert(HOST, hyper::header::HeaderValue::from_static("docker"));
        match self {
            Self::Unix(path) => exchange(UnixStream::connect(path).await?, request).await,
            Self::Tcp(address) => exchange(TcpStream::connect(address).await?, request).await,
        }
    }

    /// As [`Host::send`], for a GET without version, with time limit and remedy.
    pub(super) async fn open(&self, path: &str) -> anyhow::Result<Response<Incoming>> {
        let request = Request::get(path).body(Empty::<Bytes>::new()).context("malformed request to Docker")?;
        let response = match timeout(TIMEOUT, self.send(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let remedy = remedy(&error);
                return Err(anyhow::Error::from(error).context(format!("cannot reach Docker at {self}{remedy}")));
            }
            Err(_) => bail!("Docker at {self} accepts connections but did not answer within {TIMEOUT:?}: is it hung?"),
        };
        if !response.status().is_success() {
            let status = response.status();
            let body = read(response).await.unwrap_or_default();
            bail!("Docker at {self} answered GET {path} with {status}: {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(response)
    }

    /// Body of the answer to a GET without version.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Bytes> {
        let body = timeout(TIMEOUT, read(self.open(path).await?)).await;
        body.map_err(anyhow::Error::from)
            .flatten()
            .with_context(|| format!("cannot read the answer of Docker at {self} to GET {path}"))
    }

    /// A bollard client that speaks `api` over this host's connections.
    pub(super) fn client(&self, api: ApiVersion) -> anyhow::Result<bollard::Docker> {
        let host = self.clone();
        let transport = move |request: BollardRequest| {
            let host = host.clone();
            async move { Ok(host.send(with_version(request, api)?).await?) }
        };
        let version = ClientVersion { major_version: api.0.into(), minor_version: api.1.into() };
        bollard::Docker::connect_with_custom_transport(transport, Some("http://docker"), TIMEOUT.as_secs(), &version)
            .context("cannot set up the Docker client")
    }
}

/// Names the API version in the path, where bollard leaves it out.
fn with_version(mut request: BollardRequest, api: ApiVersion) -> io::Result<BollardRequest> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let path = if path.starts_with("/v1.") { path.to_owned() } else { format!("/v{api}{path}") };
    *request.uri_mut() = path.parse::<Uri>().map_err(io::Error::other)?;
    Ok(request)
}

async fn exchange<S, B>(stream: S, request: Request<B>) -> io::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends with the response's body, read or dropped. Its error is the body's error too.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(io::Error::other)
}

async fn read(response: Response<Incoming>) -> anyhow::Result<Bytes> {
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    Ok(body.map_err(|error| anyhow::anyhow!(error))?.to_bytes())
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => " (is Docker running? --docker-host or DOCKER_HOST names another socket)",
        io::ErrorKind::ConnectionRefused => " (is Docker running?)",
        io::ErrorKind::PermissionDenied => " (steer runs as root)",
        _ => "",
    }
}

/// A text as a value in a query.
pub(super) fn percent_encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_docker_writes_them() {
        for (text, expected) in [
            ("unix:///var/run/docker.sock", Some("unix:///var/run/docker.sock")),
            ("/run/docker.sock", Some("unix:///run/docker.sock")),
            ("tcp://127.0.0.1:2375", Some("tcp://127.0.0.1:2375")),
            ("http://proxy:2375/", Some("tcp://proxy:2375")),
            ("tcp://[::1]:2375", Some("tcp://[::1]:2375")),
            ("ssh://root@host", None),
            ("https://host:2376", None),
            ("tcp://host", None),
            ("unix://relative.sock", None),
            ("docker.sock", None),
            ("", None),
        ] {
            assert_eq!(Host::parse(text).ok().map(|host| host.to_string()).as_deref(), expected, "{text}");
        }
    }
}
