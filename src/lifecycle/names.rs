//! Names of machines, looked up as the system does: `/etc/hosts`, `nsswitch.conf`, whatever they say.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    sync::Arc,
};

use tokio::sync::Semaphore;

/// How many hosts are looked up at the same moment, and how many servers for requests. Of the 128 threads that may block, see `app`, that leaves
/// 48 to journals: the system's lookup cannot be given up, so with a name server that says nothing each takes a thread for 10 s or more.
pub const HOSTS: usize = 64;
/// See [`HOSTS`].
pub const SERVERS: usize = 16;

/// Looks names up, never more than a few at the same moment; whoever comes then waits in line. Clones share it.
#[derive(Debug, Clone)]
pub struct Names(Arc<Semaphore>);

impl Names {
    /// So many at the same moment.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Names(Arc::new(Semaphore::new(places)))
    }

    /// Where `name` is. An address is itself, and asks nobody. Cancel safe; the lookup then goes on for nobody.
    ///
    /// # Errors
    /// The system's.
    pub async fn lookup(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = name.parse() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let name = name.to_owned();
        self.one(move || Ok((name.as_str(), port).to_socket_addrs()?.collect())).await
    }

    async fn one<T: Send + 'static>(&self, look: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let place = Arc::clone(&self.0).acquire_owned().await.map_err(io::Error::other)?;
        let looking = tokio::task::spawn_blocking(move || {
            // The thread's, not the asker's: it is taken until the system has said something.
            let _place = place;
            look()
        });
        looking.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;
    use crate::lifecycle::Tasks;

    #[test]
    fn a_silent_name_server_leaves_threads_to_the_others() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(SERVERS + 1).build().unwrap();
        runtime.block_on(async {
            let (names, tasks, asked) = (Names::new(SERVERS), Tasks::new(), Arc::new(AtomicUsize::new(0)));
            let (answer, silence) = mpsc::channel::<()>();
            let silence = Arc::new(Mutex::new(silence));
            let look = || {
                let (asked, silence) = (Arc::clone(&asked), Arc::clone(&silence));
                names.one(move || {
                    asked.fetch_add(1, Ordering::SeqCst);
                    let _answered = silence.lock().unwrap().recv();
                    Ok(())
                })
            };
            // Given up at once, each of them: the thread is not.
            for _ in 0..10 * SERVERS {
                let mut given_up = std::pin::pin!(look());
                let _pending = futures_util::poll!(&mut given_up);
            }
            // The one thread that is left works.
            for n in 0..100 {
                assert_eq!(tasks.blocking(move || n).await.unwrap(), n);
            }
            assert!(asked.load(Ordering::SeqCst) <= SERVERS, "{asked:?}");
            // Once it answers, so are all.
            drop(answer);
            look().await.unwrap();
        });
    }

    #[tokio::test]
    async fn names_are_the_systems_and_addresses_are_themselves() {
        let names = Names::new(SERVERS);
        assert_eq!(names.lookup("192.0.2.7", 22).await.unwrap(), ["192.0.2.7:22".parse().unwrap()]);
        assert_eq!(names.lookup("2001:db8::7", 22).await.unwrap(), ["[2001:db8::7]:22".parse().unwrap()]);
        // In /etc/hosts everywhere.
        assert!(names.lookup("localhost", 22).await.unwrap().iter().all(|address| address.ip().is_loopback()));
    }
}
