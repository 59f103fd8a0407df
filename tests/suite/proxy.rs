//! A TCP proxy between a client and its server: delays, holds, cuts, delivers late, counts exchanges.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often a thread that holds bytes back looks whether it still must.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// How a Redis server begins to tell of a changed key.
const PUSH: &[u8] = b">2\r\n$10\r\ninvalidate\r\n*1\r\n";

#[derive(Default)]
struct Controls {
    delay_us: AtomicU64,
    hold_requests: AtomicBool,
    hold_replies: AtomicBool,
    refuse: AtomicBool,
    exchanges: AtomicU64,
    told: AtomicU64,
    pairs: Mutex<Vec<Pair>>,
}

struct Pair {
    client: TcpStream,
    server: TcpStream,
}

/// A running proxy. It ends with the process; what it carries ends when it is dropped.
pub struct Proxy {
    pub port: u16,
    controls: Arc<Controls>,
}

impl Proxy {
    /// A proxy on a free port in front of `server`.
    pub fn start(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let controls = Arc::new(Controls::default());
        let shared = controls.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.refuse.load(SeqCst) {
                    continue;
                }
                let Ok(upstream) = TcpStream::connect(server) else { continue };
                carry(&shared, client, upstream);
            }
        });
        Proxy { port, controls }
    }

    /// Every piece of bytes waits this long, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.controls.delay_us.store(delay.as_micros() as u64, SeqCst);
    }

    /// Requests stay in the proxy. What is held when the client is cut off reaches the server once they are let go.
    pub fn hold_requests(&self, on: bool) {
        self.controls.hold_requests.store(on, SeqCst);
    }

    /// Replies stay in the proxy: the server has done it and nobody knows.
    pub fn hold_replies(&self, on: bool) {
        self.controls.hold_replies.store(on, SeqCst);
    }

    /// New connections are closed at once.
    pub fn refuse(&self, on: bool) {
        self.controls.refuse.store(on, SeqCst);
    }

    /// Takes all clients off. The server's side stays until the proxy has nothing more to deliver.
    pub fn cut(&self) {
        for pair in self.controls.pairs.lock().expect("not poisoned").drain(..) {
            let _ = pair.client.shutdown(Shutdown::Both);
        }
    }

    /// Keys of which a Redis server has told that others changed them.
    pub fn told(&self) -> u64 {
        self.controls.told.load(SeqCst)
    }

    /// Requests that were answered, bursts counted once.
    pub fn exchanges(&self) -> u64 {
        self.controls.exchanges.load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.refuse(true);
        for pair in self.controls.pairs.lock().expect("not poisoned").drain(..) {
            let _ = pair.client.shutdown(Shutdown::Both);
            let _ = pair.server.shutdown(Shutdown::Both);
        }
    }
}

fn carry(controls: &Arc<Controls>, client: TcpStream, server: TcpStream) {
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let both = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
    controls.pairs.lock().expect("not poisoned").push(Pair { client: both(&client), server: both(&server) });
    let asked = Arc::new(AtomicBool::new(false));
    let (up, down) = ((both(&client), both(&server)), (server, client));
    let (one, two) = (controls.clone(), controls.clone());
    let (asking, answered) = (asked.clone(), asked);
    std::thread::spawn(move || {
        pump(up.0, up.1, &one, &one.hold_requests, |_| asking.store(true, SeqCst));
    });
    std::thread::spawn(move || {
        pump(down.0, down.1, &two, &two.hold_replies, |bytes| {
            let told = bytes.windows(PUSH.len()).filter(|window| window == &PUSH).count();
            two.told.fetch_add(told as u64, SeqCst);
            if answered.swap(false, SeqCst) {
                two.exchanges.fetch_add(1, SeqCst);
            }
        });
    });
}

fn pump(mut from: TcpStream, mut to: TcpStream, controls: &Controls, hold: &AtomicBool, seen: impl Fn(&[u8])) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 {
            break;
        }
        seen(&buffer[..count]);
        let delay = controls.delay_us.load(SeqCst);
        if delay > 0 {
            std::thread::sleep(Duration::from_micros(delay));
        }
        while hold.load(SeqCst) {
            std::thread::sleep(LOOK_EVERY);
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
