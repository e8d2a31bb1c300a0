//! As much of HTTP as it takes to show one page: GET, of one path, to a few clients at a time.
//!
//! A client costs at most one descriptor, a few kilobytes and one of [`THREADS`] for [`LIMIT`],
//! whatever it does. The others wait.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use httparse::{EMPTY_HEADER, Request};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::limited::Limited;

/// How many clients are answered at a time.
const THREADS: usize = 4;
/// How long a client may take, from its connection to the last byte that it is sent.
const LIMIT: Duration = Duration::from_secs(2);
/// The most bytes of a request.
const HEAD_MAX: usize = 8 << 10;
/// The most headers of a request.
const HEADERS_MAX: usize = 64;

/// The page, and where it is.
pub(crate) struct Page<F> {
    pub(crate) path: &'static str,
    pub(crate) media_type: &'static str,
    pub(crate) text: F,
}

/// Shows a page at a listening socket, in threads of its own that end with the process.
pub(crate) fn start<F>(name: &str, socket: OwnedFd, page: Page<F>) -> io::Result<()>
where
    F: Fn() -> String + Send + Sync + 'static,
{
    let shared = Arc::new((socket, page));
    for _ in 0..THREADS {
        let shared = Arc::clone(&shared);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let (socket, page) = &*shared;
            accept(socket, page);
        })?;
    }
    Ok(())
}

/// Answers one client after the other.
fn accept<F: Fn() -> String>(socket: &OwnedFd, page: &Page<F>) {
    loop {
        match rustix::net::accept_with(socket, SocketFlags::CLOEXEC) {
            Ok(client) => {
                if let Err(error) = serve(client, page, LIMIT) {
                    tracing::debug!("a client was not shown {}: {error}", page.path);
                }
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => {
                tracing::warn!("a client that wants {} was not accepted: {error}", page.path);
                // Most likely descriptors have run out: trying again at once would fail again.
                thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

/// Answers one request.
fn serve<F: Fn() -> String>(socket: OwnedFd, page: &Page<F>, limit: Duration) -> io::Result<()> {
    let mut client = Limited::new(socket, limit);
    let answer = read_request(&mut client, page.path)?;
    let text = match answer {
        Answer::Page => (page.text)(),
        refusal => format!("{}\n", refusal.status()),
    };
    let media_type = if answer == Answer::Page { page.media_type } else { "text/plain" };
    let head = format!(
        "HTTP/1.1 {}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n{}Connection: close\r\n\r\n",
        answer.status(),
        text.len(),
        if answer == Answer::Method { "Allow: GET\r\n" } else { "" },
    );
    client.write_all((head + &text).as_bytes())
}

/// What a client is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Page,
    Malformed,
    NotFound,
    Method,
    TooLarge,
}

impl Answer {
    const fn status(self) -> &'static str {
        match self {
            Self::Page => "200 OK",
            Self::Malformed => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::Method => "405 Method Not Allowed",
            Self::TooLarge => "431 Request Header Fields Too Large",
        }
    }
}

fn read_request(client: &mut impl Read, path: &str) -> io::Result<Answer> {
    let mut head = [0; HEAD_MAX];
    let mut len = 0;
    loop {
        match client.read(&mut head[len..])? {
            0 if len == HEAD_MAX => return Ok(Answer::TooLarge),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => len += more,
        }
        if let Some(answer) = judge(&head[..len], path) {
            return Ok(answer);
        }
    }
}

/// Says how a request is answered, or `None` if it goes on.
fn judge(head: &[u8], path: &str) -> Option<Answer> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = Request::new(&mut headers);
    match request.parse(head) {
        Err(httparse::Error::TooManyHeaders) => return Some(Answer::TooLarge),
        Err(_) => return Some(Answer::Malformed),
        Ok(status) if status.is_partial() => return None,
        Ok(_) => {}
    }
    let target = request.path.unwrap_or_default();
    let asked = target.split_once('?').map_or(target, |(path, _)| path);
    Some(match request.method {
        _ if asked != path => Answer::NotFound,
        Some("GET") => Answer::Page,
        _ => Answer::Method,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    fn judged(head: &str) -> Option<Answer> {
        judge(head.as_bytes(), "/metrics")
    }

    #[test]
    fn the_page_is_at_its_path_whatever_the_query() {
        assert_eq!(judged("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"), Some(Answer::Page));
        assert_eq!(judged("GET /metrics?name=x HTTP/1.0\r\n\r\n"), Some(Answer::Page));
        assert_eq!(judged("GET /metrics/ HTTP/1.1\r\n\r\n"), Some(Answer::NotFound));
        assert_eq!(judged("GET / HTTP/1.1\r\n\r\n"), Some(Answer::NotFound));
    }

    #[test]
    fn what_is_no_get_is_refused() {
        assert_eq!(judged("POST /metrics HTTP/1.1\r\n\r\n"), Some(Answer::Method));
        assert_eq!(judged("\0\u{1}\u{2}"), Some(Answer::Malformed));
        assert_eq!(judged("GET /metrics\r\n\r\n"), Some(Answer::Malformed));
    }

    #[test]
    fn a_request_goes_on_to_its_empty_line() {
        assert_eq!(judged("GET /metrics HTTP/1.1\r\nHost: a\r\n"), None);
        let headers = "a: b\r\n".repeat(HEADERS_MAX + 1);
        let answer = judged(&format!("GET /metrics HTTP/1.1\r\n{headers}\r\n"));
        assert_eq!(answer, Some(Answer::TooLarge));
    }

    #[test]
    fn a_request_without_end_is_refused() {
        let mut endless = b"GET /".as_slice().chain(io::repeat(b'a'));
        assert_eq!(read_request(&mut endless, "/metrics").ok(), Some(Answer::TooLarge));
    }

    fn page() -> Page<impl Fn() -> String> {
        Page { path: "/metrics", media_type: "text/plain", text: || "a".repeat(8 << 20) }
    }

    #[test]
    fn a_client_that_says_nothing_is_left() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let served = serve(ours.into(), &page(), Duration::from_millis(20));
        assert!(matches!(
            served.unwrap_err().kind(),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
        ));
    }

    #[test]
    fn a_silent_client_keeps_nobody_waiting() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _silent = std::net::TcpStream::connect(address).unwrap();
        start("page", listener.into(), page()).unwrap();
        let started = Instant::now();
        let mut client = std::net::TcpStream::connect(address).unwrap();
        client.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        client.read_exact(&mut [0; 15]).unwrap();
        assert!(started.elapsed() < LIMIT);
    }

    #[test]
    fn a_client_that_reads_nothing_is_left() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let served = serve(ours.into(), &page(), Duration::from_millis(20));
        assert!(matches!(
            served.unwrap_err().kind(),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
        ));
    }
}
