//! The same calls one at a time and from many callers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::abi::{self, How, Opening};
use crate::corpus::Dice;
use crate::tally::Times;

/// Words of the texts: short ones and some longer, as moderation sees them.
const WORDS: [usize; 4] = [6, 12, 30, 80];
/// Each number of callers is measured so often, in turns.
const ROUNDS: usize = 3;

struct Figures {
    texts: AtomicU64,
    tokens: AtomicU64,
    times: Times,
    seconds: f64,
}

/// Measures one caller and `callers`, without a prefix cache, so that no text is free.
pub fn measure(model: &str, callers: usize, time: Duration) -> Result<(), String> {
    let guard = abi::open(model, Opening { no_prefix_cache: true, ..Opening::default() })?;
    let mut both = [1, callers].map(|callers| (callers, Figures::new()));
    for _ in 0..ROUNDS {
        for (callers, figures) in &mut both {
            figures.run(guard, *callers, time)?;
        }
    }
    abi::free(guard);
    for (callers, figures) in &both {
        let rate = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64 / figures.seconds;
        println!(
            "{callers:>3} callers: {:.0} texts/s, {:.0} tokens/s; p50 {:.1}, p95 {:.1}, p99 {:.1} ms",
            rate(&figures.texts),
            rate(&figures.tokens),
            figures.times.quantile(0.5),
            figures.times.quantile(0.95),
            figures.times.quantile(0.99),
        );
    }
    Ok(())
}

impl Figures {
    fn new() -> Self {
        Self {
            texts: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
            times: Times::new(),
            seconds: 0.0,
        }
    }

    fn run(&mut self, guard: u64, callers: usize, time: Duration) -> Result<(), String> {
        let (stop, start, figures) = (AtomicBool::new(false), Instant::now(), &*self);
        let all = thread::scope(|scope| {
            let stop = &stop;
            let threads: Vec<_> = (0..callers)
                .map(|number| scope.spawn(move || figures.call(guard, number as u64, stop)))
                .collect();
            thread::sleep(time);
            stop.store(true, Ordering::Relaxed);
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(-1)))
        });
        self.seconds += start.elapsed().as_secs_f64();
        all.map_err(|status| format!("throughput: status {status}"))
    }

    fn call(&self, guard: u64, seed: u64, stop: &AtomicBool) -> Result<(), i32> {
        let mut dice = Dice::new(seed);
        while !stop.load(Ordering::Relaxed) {
            let words = *dice.pick(&WORDS);
            let text: Vec<String> = (0..words).map(|_| format!("w{}", dice.below(100))).collect();
            let start = Instant::now();
            let scored = abi::score(guard, None, text.join(" ").as_bytes(), How::default())?;
            self.times.add(start.elapsed());
            self.texts.fetch_add(1, Ordering::Relaxed);
            self.tokens.fetch_add(scored.tokens, Ordering::Relaxed);
        }
        Ok(())
    }
}
