//! Names to addresses: asked anew for each connection, but one question at a time for each name,
//! and a name that has no address is not asked for again at once. A group whose pods have no
//! addresses yet would else flood the name service and the threads that wait for it.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use tokio::sync::OwnedMutexGuard;

/// How long a failed question is not repeated. Short: a name that comes into being is found within
/// this time; long against the tenth of a second after which peers are dialed again.
const FAILED_FOR: Duration = Duration::from_millis(500);

/// Names remembered; a group and its name servers are a few dozen. Beyond it all are forgotten.
const NAMES_MAX: usize = 1024;

/// Asks the system: all addresses of a `host:port`.
type Lookup = Box<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// The newest answer about one name.
#[derive(Debug, Clone)]
struct Answered {
    at: Instant,
    /// The error as kind and text, since `io::Error` cannot be cloned.
    result: Result<Vec<SocketAddr>, (io::ErrorKind, String)>,
}

/// Locked while the name is being asked for.
type Name = Arc<tokio::sync::Mutex<Option<Answered>>>;

pub(super) struct Resolver {
    lookup: Lookup,
    names: Mutex<HashMap<String, Name>>,
}

impl Resolver {
    pub(super) fn new(lookup: Lookup) -> Self {
        Self {
            lookup,
            names: Mutex::default(),
        }
    }

    /// Every address of `address`, a `host:port`.
    pub(super) async fn resolve(&self, address: &str) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = address.parse() {
            return Ok(vec![address]);
        }
        let asked_at = Instant::now();
        let mut answer = self.name(address).lock_owned().await;
        if let Some(known) = answer.as_ref() {
            // It came while we waited, or it is a failure of just now.
            let is_fresh =
                known.at >= asked_at || known.result.is_err() && known.at.elapsed() < FAILED_FOR;
            if is_fresh {
                return to_io(address, known.result.clone());
            }
        }
        // A task of its own keeps the lock until the system answers, even if the caller gives up:
        // a name service that does not answer is then waited for once, not once a try.
        let question = (self.lookup)(address.to_owned());
        let asking = tokio::spawn(async move {
            let result = question.await;
            note(&mut answer, result)
        });
        let result = asking.await.map_err(io::Error::other)?;
        to_io(address, result)
    }

    fn name(&self, address: &str) -> Name {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= NAMES_MAX {
            names.clear();
        }
        Arc::clone(names.entry(address.to_owned()).or_default())
    }
}

fn note(
    answer: &mut OwnedMutexGuard<Option<Answered>>,
    result: io::Result<Vec<SocketAddr>>,
) -> Result<Vec<SocketAddr>, (io::ErrorKind, String)> {
    let result = match result {
        Ok(found) if found.is_empty() => {
            Err((io::ErrorKind::NotFound, "name has no address".to_owned()))
        }
        Ok(found) => Ok(found),
        Err(error) => Err((error.kind(), error.to_string())),
    };
    **answer = Some(Answered {
        at: Instant::now(),
        result: result.clone(),
    });
    result
}

fn to_io(
    address: &str,
    result: Result<Vec<SocketAddr>, (io::ErrorKind, String)>,
) -> io::Result<Vec<SocketAddr>> {
    result.map_err(|(kind, text)| io::Error::new(kind, format!("resolve {address}: {text}")))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;

    use super::*;

    /// A resolver that knows names beginning with `known`, and the number of its questions.
    fn resolver() -> (Resolver, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let lookup = move |name: String| {
            counted.fetch_add(1, Ordering::SeqCst);
            let question: BoxFuture<'static, io::Result<Vec<SocketAddr>>> = Box::pin(async move {
                // All who ask at a time have asked before the first answer.
                tokio::task::yield_now().await;
                if name.starts_with("known") {
                    Ok(vec![SocketAddr::from(([10, 0, 0, 1], 1))])
                } else {
                    Err(io::ErrorKind::NotFound.into())
                }
            });
            question
        };
        (Resolver::new(Box::new(lookup)), asked)
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_asked_for_once_by_many() {
        let (resolver, asked) = resolver();
        let tries = join_all((0..100).map(|_| resolver.resolve("missing:1"))).await;
        assert!(tries.iter().all(Result::is_err));
        let error = resolver.resolve("missing:1").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(
            error.to_string().starts_with("resolve missing:1: "),
            "{error}"
        );
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_known_name_is_asked_for_at_each_connect_and_an_address_never() {
        let (resolver, asked) = resolver();
        for times in 1..4 {
            resolver.resolve("known:1").await.unwrap();
            assert_eq!(asked.load(Ordering::SeqCst), times);
        }
        let direct = resolver.resolve("127.0.0.1:9").await.unwrap();
        assert_eq!(direct, [SocketAddr::from(([127, 0, 0, 1], 9))]);
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }
}
