//! The scheduler over an engine whose passes run for as long as a test says.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Condvar, Weak};

use super::*;
use crate::call::CancelToken;

/// For what comes at once unless it never comes.
const PATIENCE: Duration = Duration::from_secs(30);
/// A deadline that is not over before the call is queued; Miri is slow, and its clock the real one.
const SOON: Duration = Duration::from_millis(if cfg!(miri) { 10_000 } else { 300 });

const PANICS_AT_BEGIN: u32 = 1001;
const PANICS_AT_ADVANCE: u32 = 1002;
const PANICS_AT_FINISH: u32 = 1003;
const FAILS: u32 = 1004;
/// Runs out of memory beside other jobs...
const LARGE: u32 = 1005;
/// ...and this one alone too.
const TOO_LARGE: u32 = 1006;

#[derive(Clone, Copy)]
struct Job {
    id: u32,
    tokens: usize,
}

type Answer = Receiver<Vec<Result<u32>>>;

/// Gives each job its id as the result, and notes what it did.
#[derive(Clone, Default)]
struct Fake(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    log: Vec<Event>,
    /// Jobs whose passes take step after step.
    held: HashSet<u32>,
    /// Jobs whose passes stay in one step.
    stuck: HashSet<u32>,
}

#[derive(Clone, Debug, PartialEq)]
enum Event {
    Begin(Vec<u32>),
    /// One step or many; of the jobs that were live.
    Step(Vec<u32>),
    Finish(Vec<u32>),
    Dropped(Vec<u32>),
}
use Event::*;

struct Pass {
    ids: Vec<u32>,
    jobs: Vec<Job>,
    fake: Fake,
}

impl Drop for Pass {
    fn drop(&mut self) {
        if !self.ids.is_empty() {
            self.fake.note(Dropped(std::mem::take(&mut self.ids)));
        }
    }
}

impl Fake {
    fn note(&self, event: Event) {
        let mut state = lock(&self.0.0);
        if state.log.last() != Some(&event) {
            state.log.push(event);
        }
        self.0.1.notify_all();
    }

    fn hold<const N: usize>(&self, ids: [u32; N]) {
        lock(&self.0.0).held.extend(ids);
    }

    fn stick<const N: usize>(&self, ids: [u32; N]) {
        lock(&self.0.0).stuck.extend(ids);
    }

    fn release<const N: usize>(&self, ids: [u32; N]) {
        let mut state = lock(&self.0.0);
        state.held.retain(|id| !ids.contains(id));
        state.stuck.retain(|id| !ids.contains(id));
        self.0.1.notify_all();
    }

    fn log(&self) -> Vec<Event> {
        lock(&self.0.0).log.clone()
    }

    fn wait_for(&self, event: Event) {
        let (_guard, timeout) = self
            .0
            .1
            .wait_timeout_while(lock(&self.0.0), PATIENCE, |state| !state.log.contains(&event))
            .unwrap();
        assert!(!timeout.timed_out(), "no {event:?}");
    }
}

impl Engine for Fake {
    type Job = Job;
    type Output = u32;
    type Pass = Pass;

    fn tokens(&self, job: &Job) -> usize {
        job.tokens
    }

    fn begin(&self, jobs: Vec<Job>) -> Pass {
        let ids: Vec<u32> = jobs.iter().map(|job| job.id).collect();
        self.note(Begin(ids.clone()));
        assert!(!ids.contains(&PANICS_AT_BEGIN), "at begin");
        Pass { ids, jobs, fake: self.clone() }
    }

    fn give_back(&self, mut pass: Pass) -> Vec<Job> {
        pass.ids.clear();
        std::mem::take(&mut pass.jobs)
    }

    fn advance(&self, pass: &mut Pass, live: &[bool]) -> Result<bool> {
        assert!(!pass.ids.contains(&PANICS_AT_ADVANCE), "at advance");
        if pass.ids.contains(&FAILS) {
            return Err(Error::new(Status::NonFinite, "as planned"));
        }
        let many = pass.ids.len() > 1;
        if pass.ids.iter().any(|&id| id == TOO_LARGE || (id == LARGE && many)) {
            return Err(Error::new(Status::OutOfMemory, "as planned"));
        }
        let live: Vec<u32> =
            pass.ids.iter().zip(live).filter(|(_, live)| **live).map(|(id, _)| *id).collect();
        self.note(Step(live.clone()));
        let state = self
            .0
            .1
            .wait_while(lock(&self.0.0), |state| live.iter().any(|id| state.stuck.contains(id)));
        let held = live.iter().any(|id| state.as_ref().unwrap().held.contains(id));
        drop(state);
        if held {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(!held)
    }

    fn finish(&self, mut pass: Pass) -> Result<Vec<Result<u32>>> {
        assert!(!pass.ids.contains(&PANICS_AT_FINISH), "at finish");
        let ids = std::mem::take(&mut pass.ids);
        self.note(Finish(ids.clone()));
        Ok(ids.into_iter().map(Ok).collect())
    }
}

/// A test's hand on the engine. Dropped, it lets go of every job, so that a test that fails does
/// not wait for a worker that is held; hence after the scheduler in every `let`.
struct Hand(Fake);

impl std::ops::Deref for Hand {
    type Target = Fake;

    fn deref(&self) -> &Fake {
        &self.0
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        let mut state = lock(&self.0.0.0);
        state.held.clear();
        state.stuck.clear();
        self.0.0.1.notify_all();
    }
}

fn start(queue: usize, batch_tokens: usize) -> (Arc<Scheduler<Fake>>, Hand) {
    let fake = Fake::default();
    let limits = Limits { queue, batch_tokens, short_tokens: batch_tokens };
    let scheduler = Scheduler::start(Arc::new(fake.clone()), limits, Arc::default()).unwrap();
    (Arc::new(scheduler), Hand(fake))
}

/// A scheduler with a budget of 10 whose worker is at a pass of one short job, 0, that is held.
fn start_held(queue: usize) -> (Arc<Scheduler<Fake>>, Hand, Answer) {
    let (scheduler, fake) = start(queue, 10);
    fake.hold([0]);
    let results = submit(&scheduler, vec![short(0)], Control::default());
    fake.wait_for(Step(vec![0]));
    (scheduler, fake, results)
}

fn short(id: u32) -> Job {
    Job { id, tokens: 1 }
}

fn long(id: u32) -> Job {
    Job { id, tokens: 100 }
}

fn submit(scheduler: &Scheduler<Fake>, jobs: Vec<Job>, control: Control) -> Answer {
    let (sender, receiver) = mpsc::channel();
    scheduler.submit(jobs, control, move |results| sender.send(results).unwrap()).unwrap();
    receiver
}

fn get<T>(receiver: &Receiver<T>) -> T {
    receiver.recv_timeout(PATIENCE).expect("no answer")
}

fn oks(ids: impl IntoIterator<Item = u32>) -> Vec<Result<u32>> {
    ids.into_iter().map(Ok).collect()
}

fn statuses(results: &[Result<u32>]) -> Vec<Result<u32, Status>> {
    results.iter().map(|r| r.as_ref().copied().map_err(Error::status)).collect()
}

fn cancellable() -> (CancelToken, Control) {
    let token = CancelToken::new();
    (token.clone(), Control { cancel: Some(token), ..Control::default() })
}

fn until(deadline: Duration) -> Control {
    Control { deadline: Some(Instant::now() + deadline), ..Control::default() }
}

fn waiting(control: Control) -> Control {
    Control { wait: true, ..control }
}

fn wait_until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < PATIENCE, "it never came");
        thread::yield_now();
    }
}

#[test]
fn batches_fill_to_the_budget_in_order_and_a_long_text_runs_alone() {
    let fake = Fake::default();
    let counters = Arc::new(Counters::default());
    let limits = Limits { queue: 100, batch_tokens: 10, short_tokens: 7 };
    let scheduler = Scheduler::start(Arc::new(fake.clone()), limits, counters.clone()).unwrap();
    let jobs = [4, 6, 1, 8, 3].into_iter().zip(0..).map(|(tokens, id)| Job { id, tokens });
    let results = scheduler.run(jobs.collect(), &Control::default()).unwrap();
    assert_eq!(results, oks(0..5));
    let begun = fake.log().into_iter().filter(|event| matches!(event, Begin(_)));
    let expected = [vec![0, 1], vec![2], vec![3], vec![4]].map(Begin);
    assert_eq!(begun.collect::<Vec<_>>(), expected);
    let stats = counters.snapshot();
    assert_eq!((stats.passes, stats.pass_sequences), (4, 5));
}

#[test]
fn a_batch_that_runs_out_of_memory_runs_in_halves_once() {
    let out_of_memory = Err(Status::OutOfMemory);
    let sized = |id, tokens| Job { id, tokens };
    let cases = [
        // Halves of the tokens: the second one fits.
        (
            vec![sized(LARGE, 4), sized(1, 2), sized(2, 2)],
            vec![vec![LARGE, 1, 2], vec![LARGE], vec![1, 2]],
            vec![Ok(LARGE), Ok(1), Ok(2)],
        ),
        // A half is not halved again, and fails alone.
        (
            vec![sized(1, 2), sized(2, 3), sized(LARGE, 1), sized(3, 4)],
            vec![vec![1, 2, LARGE, 3], vec![1, 2], vec![LARGE, 3]],
            vec![Ok(1), Ok(2), out_of_memory, out_of_memory],
        ),
        (
            vec![sized(TOO_LARGE, 9), sized(1, 1)],
            vec![vec![TOO_LARGE, 1], vec![TOO_LARGE], vec![1]],
            vec![out_of_memory, Ok(1)],
        ),
        // One job is no batch.
        (vec![sized(TOO_LARGE, 1)], vec![vec![TOO_LARGE]], vec![out_of_memory]),
        (vec![sized(TOO_LARGE, 50)], vec![vec![TOO_LARGE]], vec![out_of_memory]),
        // Other failures are answered at once.
        (vec![sized(FAILS, 1), sized(1, 1)], vec![vec![FAILS, 1]], vec![Err(Status::NonFinite); 2]),
    ];
    for (jobs, begun, answered) in cases {
        let (scheduler, fake) = start(100, 10);
        let results = scheduler.run(jobs, &Control::default()).unwrap();
        assert_eq!(statuses(&results), answered);
        let log = fake.log();
        let passes: Vec<_> =
            log.iter().filter(|event| matches!(event, Begin(_))).cloned().collect();
        assert_eq!(passes, begun.into_iter().map(Begin).collect::<Vec<_>>());
    }
}

#[test]
fn a_half_whose_callers_are_gone_is_not_run_and_a_panic_answers_both() {
    let (scheduler, fake) = start(100, 10);
    let (token, control) = cancellable();
    fake.hold([0]);
    let held = submit(&scheduler, vec![short(0)], Control::default());
    fake.wait_for(Step(vec![0]));
    fake.hold([LARGE]);
    let first = submit(&scheduler, vec![short(LARGE)], Control::default());
    let second = submit(&scheduler, vec![short(1)], control);
    fake.release([0]);
    get(&held);
    fake.wait_for(Step(vec![LARGE]));
    token.cancel();
    assert_eq!(statuses(&get(&second)), [Err(Status::Cancelled)]);
    fake.release([LARGE]);
    assert_eq!(get(&first), oks([LARGE]));
    assert!(!fake.log().contains(&Begin(vec![1])));

    // The second half panics while the first has answered, and the first while the second waits.
    for (jobs, answered) in [
        ([LARGE, PANICS_AT_FINISH], [Ok(LARGE), Err(Status::Poisoned)]),
        ([PANICS_AT_FINISH, LARGE], [Err(Status::Poisoned), Err(Status::Poisoned)]),
    ] {
        let (scheduler, _fake) = start(100, 10);
        let results = scheduler.run(jobs.map(short).into(), &Control::default()).unwrap();
        assert_eq!(statuses(&results), answered);
    }
}

#[test]
fn a_full_queue_answers_busy_at_once_and_an_empty_call_returns() {
    let (scheduler, _fake) = start(2, 10);
    let error = scheduler.run(vec![short(1); 3], &Control::default()).unwrap_err();
    assert_eq!(error.status(), Status::Busy);
    assert!(scheduler.run(vec![], &Control::default()).unwrap().is_empty());
    assert!(get(&submit(&scheduler, vec![], Control::default())).is_empty());
    assert_eq!(scheduler.run(vec![short(7)], &Control::default()).unwrap(), [Ok(7)]);
}

#[test]
fn a_job_without_tokens_is_answered_and_is_no_pass_of_the_backbone() {
    let counters = Arc::new(Counters::default());
    let limits = Limits { queue: 2, batch_tokens: 10, short_tokens: 10 };
    let scheduler = Scheduler::start(Arc::new(Fake::default()), limits, counters.clone()).unwrap();
    let job = Job { id: 3, tokens: 0 };
    assert_eq!(scheduler.run(vec![job], &Control::default()).unwrap(), [Ok(3)]);
    assert_eq!(counters.snapshot().passes, 0);
}

#[test]
fn short_jobs_pass_a_long_one_and_other_long_ones_wait_in_order() {
    let (scheduler, fake) = start(100, 10);
    fake.hold([1]);
    let first_long = submit(&scheduler, vec![long(1)], Control::default());
    fake.wait_for(Step(vec![1]));
    // Behind two more long ones.
    let longs = submit(&scheduler, vec![long(2), long(3)], Control::default());
    let shorts = submit(&scheduler, vec![short(4), short(5)], Control::default());
    assert_eq!(get(&shorts), oks([4, 5]));
    assert_eq!(scheduler.run(vec![short(6)], &Control::default()).unwrap(), [Ok(6)]);
    fake.release([1]);
    assert_eq!(get(&first_long), oks([1]));
    assert_eq!(get(&longs), oks([2, 3]));
    let pass = |ids: &[u32]| [Begin(ids.into()), Step(ids.into()), Finish(ids.into())];
    let mut expected = vec![Begin(vec![1]), Step(vec![1])];
    expected.extend(pass(&[4, 5]));
    expected.push(Step(vec![1]));
    expected.extend(pass(&[6]));
    expected.extend([Step(vec![1]), Finish(vec![1])]);
    expected.extend(pass(&[2]));
    expected.extend(pass(&[3]));
    assert_eq!(fake.log(), expected);
}

/// Queues a short job again whenever it is done, until told to stop.
fn again(scheduler: Weak<Scheduler<Fake>>, stop: CancelToken) {
    let Some(strong) = scheduler.upgrade().filter(|_| !stop.is_cancelled()) else { return };
    let next = move |_| again(scheduler, stop);
    strong.submit(vec![short(2)], Control::default(), next).unwrap();
}

#[test]
fn a_long_job_ends_although_short_ones_never_do() {
    let (scheduler, fake) = start(100, 10);
    fake.hold([1]);
    let result = submit(&scheduler, vec![long(1)], Control::default());
    let stop = CancelToken::new();
    again(Arc::downgrade(&scheduler), stop.clone());
    again(Arc::downgrade(&scheduler), stop.clone());
    fake.wait_for(Finish(vec![2, 2]));
    fake.release([1]);
    assert_eq!(get(&result), oks([1]));
    stop.cancel();
}

#[test]
fn what_waits_is_cancelled_and_expires_while_a_pass_runs() {
    let (scheduler, fake, held) = start_held(100);
    let (token, control) = cancellable();
    let cancelled = submit(&scheduler, vec![short(1), long(2)], control);
    let expired = submit(&scheduler, vec![short(3), long(4)], until(SOON));
    let others = submit(&scheduler, vec![short(5), long(6)], Control::default());
    token.cancel();
    assert_eq!(statuses(&get(&cancelled)), [Err(Status::Cancelled); 2]);
    assert_eq!(statuses(&get(&expired)), [Err(Status::DeadlineExceeded); 2]);
    assert_eq!(scheduler.waiting(), 2);
    fake.release([0]);
    assert_eq!(get(&held), oks([0]));
    assert_eq!(get(&others), oks([5, 6]));
    let begun: Vec<_> = fake.log().into_iter().filter(|e| matches!(e, Begin(_))).collect();
    assert_eq!(begun, [vec![0], vec![5], vec![6]].map(Begin));
}

#[test]
fn what_runs_is_cancelled_and_expires_and_the_rest_of_its_pass_goes_on() {
    let (scheduler, fake, held) = start_held(100);
    let (token, control) = cancellable();
    let cancelled = submit(&scheduler, vec![short(1), short(2)], control);
    let expired = submit(&scheduler, vec![short(3)], until(SOON));
    let other = submit(&scheduler, vec![short(4)], Control::default());
    fake.hold([1, 3, 4]);
    fake.release([0]);
    fake.wait_for(Step(vec![1, 2, 3, 4]));
    token.cancel();
    assert_eq!(statuses(&get(&cancelled)), [Err(Status::Cancelled); 2]);
    assert_eq!(statuses(&get(&expired)), [Err(Status::DeadlineExceeded)]);
    fake.wait_for(Step(vec![4]));
    assert!(other.try_recv().is_err());
    fake.release([4]);
    assert_eq!(get(&other), oks([4]));
    assert_eq!(get(&held), oks([0]));
    assert!(fake.log().contains(&Finish(vec![1, 2, 3, 4])));
}

#[test]
fn a_long_job_is_cancelled_while_a_short_pass_runs() {
    let (scheduler, fake) = start(100, 10);
    fake.hold([1, 2]);
    let (token, control) = cancellable();
    let cancelled = submit(&scheduler, vec![long(1)], control);
    fake.wait_for(Step(vec![1]));
    let other = submit(&scheduler, vec![short(2)], Control::default());
    fake.wait_for(Step(vec![2]));
    token.cancel();
    assert_eq!(statuses(&get(&cancelled)), [Err(Status::Cancelled)]);
    fake.wait_for(Dropped(vec![1]));
    fake.release([2]);
    assert_eq!(get(&other), oks([2]));
}

#[test]
fn a_pass_is_dropped_when_nobody_waits_for_it() {
    for job in [short(1), long(1)] {
        let (scheduler, fake) = start(100, 10);
        fake.hold([1]);
        let (token, control) = cancellable();
        let cancelled = submit(&scheduler, vec![job], control);
        fake.wait_for(Step(vec![1]));
        token.cancel();
        assert_eq!(statuses(&get(&cancelled)), [Err(Status::Cancelled)]);
        fake.wait_for(Dropped(vec![1]));
        assert_eq!(scheduler.run(vec![short(2)], &Control::default()).unwrap(), [Ok(2)]);
        assert!(!fake.log().contains(&Finish(vec![1])));
    }
}

#[test]
fn part_of_a_call_may_be_done_when_the_rest_is_cancelled() {
    let (scheduler, fake) = start(100, 1);
    fake.hold([2]);
    let (token, control) = cancellable();
    let results = submit(&scheduler, vec![short(1), short(2), short(3)], control);
    fake.wait_for(Step(vec![2]));
    token.cancel();
    let cancelled = Err(Status::Cancelled);
    assert_eq!(statuses(&get(&results)), [Ok(1), cancelled, cancelled]);
}

#[test]
fn calls_that_are_over_before_they_begin_are_not_queued() {
    let (scheduler, _fake) = start(100, 10);
    let (token, control) = cancellable();
    token.cancel();
    let error = scheduler.run(vec![short(1)], &control).unwrap_err();
    assert_eq!(error.status(), Status::Cancelled);
    let never = |_| panic!("done although it was refused");
    let error = scheduler.submit(vec![], until(Duration::ZERO), never).unwrap_err();
    assert_eq!(error.status(), Status::DeadlineExceeded);
}

#[test]
fn a_blocking_call_keeps_its_deadline_though_the_worker_is_stuck() {
    let (scheduler, fake) = start(100, 10);
    fake.stick([1, 2]);
    // One that runs, and one that waits.
    for id in [1, 2] {
        let (sender, answer) = mpsc::channel();
        let scheduler = scheduler.clone();
        thread::spawn(move || {
            sender.send(scheduler.run(vec![short(id)], &until(SOON)).unwrap()).unwrap();
        });
        assert_eq!(statuses(&get(&answer)), [Err(Status::DeadlineExceeded)]);
    }
    fake.release([1, 2]);
    assert_eq!(scheduler.run(vec![short(3)], &Control::default()).unwrap(), [Ok(3)]);
}

#[test]
fn who_waits_for_a_place_gets_it_unless_cancelled_or_too_late() {
    let (scheduler, fake, held) = start_held(2);
    let queued = submit(&scheduler, vec![short(1), short(2)], Control::default());
    let busy = scheduler.run(vec![short(3)], &Control::default()).unwrap_err();
    assert_eq!(busy.status(), Status::Busy);
    let line = submit(&scheduler, vec![short(4), short(5)], waiting(Control::default()));
    let never = |_| panic!("done although it was refused");
    let busy = scheduler.submit(vec![short(6)], waiting(Control::default()), never).unwrap_err();
    assert_eq!(busy.status(), Status::Busy, "the line has an end too");
    let late = scheduler.run(vec![short(7)], &waiting(until(SOON))).unwrap();
    assert_eq!(statuses(&late), [Err(Status::DeadlineExceeded)]);
    wait_until(|| scheduler.waiting() == 4);
    let (token, control) = cancellable();
    thread::scope(|scope| {
        let cancelled = scope.spawn(|| scheduler.run(vec![short(8)], &waiting(control)).unwrap());
        wait_until(|| scheduler.waiting() == 5);
        token.cancel();
        assert_eq!(statuses(&cancelled.join().unwrap()), [Err(Status::Cancelled)]);
        let patient =
            scope.spawn(|| scheduler.run(vec![short(9)], &waiting(Control::default())).unwrap());
        wait_until(|| scheduler.waiting() == 5);
        fake.release([0]);
        assert_eq!(patient.join().unwrap(), oks([9]));
    });
    assert_eq!(get(&held), oks([0]));
    assert_eq!(get(&queued), oks([1, 2]));
    assert_eq!(get(&line), oks([4, 5]));
    assert!(!fake.log().iter().any(|event| *event == Begin(vec![7]) || *event == Begin(vec![8])));
}

#[test]
fn an_error_of_a_pass_is_that_of_its_jobs_alone() {
    let (scheduler, fake, held) = start_held(100);
    let failed = submit(&scheduler, vec![short(1), short(FAILS)], Control::default());
    let other = submit(&scheduler, vec![long(2)], Control::default());
    fake.release([0]);
    assert_eq!(get(&held), oks([0]));
    assert_eq!(statuses(&get(&failed)), [Err(Status::NonFinite); 2]);
    assert_eq!(get(&other), oks([2]));
}

#[test]
fn a_panic_poisons_for_good_and_says_why() {
    for (id, words) in [
        (PANICS_AT_BEGIN, "at begin"),
        (PANICS_AT_ADVANCE, "at advance"),
        (PANICS_AT_FINISH, "at finish"),
    ] {
        let (scheduler, _fake) = start(10, 1);
        let jobs = vec![short(1), short(id), short(2)];
        let results = scheduler.run(jobs, &Control::default()).unwrap();
        assert_eq!(results[0], Ok(1));
        for result in &results[1..] {
            let error = result.as_ref().unwrap_err();
            assert_eq!(error.status(), Status::Poisoned);
            assert!(error.message().contains(words), "{error}");
        }
        for jobs in [vec![short(1)], vec![]] {
            let error = scheduler.run(jobs, &Control::default()).unwrap_err();
            assert_eq!(error.status(), Status::Poisoned);
        }
        assert_eq!(scheduler.check().unwrap_err().status(), Status::Poisoned);
    }
}

#[test]
fn a_panic_answers_everyone_who_waits_or_runs() {
    let (scheduler, fake, held) = start_held(4);
    let poisoned = Err(Status::Poisoned);
    fake.hold([1]);
    let open = submit(&scheduler, vec![long(1)], Control::default());
    fake.release([0]);
    assert_eq!(get(&held), oks([0]));
    fake.wait_for(Step(vec![1]));
    fake.hold([2]);
    let running = submit(&scheduler, vec![short(2)], Control::default());
    fake.wait_for(Step(vec![2]));
    let queued = submit(&scheduler, vec![short(PANICS_AT_ADVANCE), long(4)], Control::default());
    thread::scope(|scope| {
        let blocking = [until(PATIENCE), Control::default()].map(|control| {
            let scheduler = &scheduler;
            scope.spawn(move || scheduler.run(vec![long(3); 4], &waiting(control)).unwrap())
        });
        wait_until(|| scheduler.waiting() == 10);
        fake.release([2]);
        assert_eq!(get(&running), oks([2]));
        for caller in blocking {
            assert_eq!(statuses(&caller.join().unwrap()), [poisoned; 4]);
        }
    });
    assert_eq!(statuses(&get(&open)), [poisoned]);
    assert_eq!(statuses(&get(&queued)), [poisoned; 2]);
    assert_eq!(scheduler.waiting(), 0);
}

#[test]
fn dropping_completes_what_is_queued() {
    let (scheduler, fake, held) = start_held(100);
    let queued: Vec<_> = (1..20)
        .map(|id| {
            let job = if id % 3 == 0 { long(id) } else { short(id) };
            submit(&scheduler, vec![job], Control::default())
        })
        .collect();
    let dropper = thread::spawn(move || drop(scheduler));
    fake.release([0]);
    dropper.join().unwrap();
    assert_eq!(held.try_recv().unwrap(), oks([0]));
    for (id, results) in (1..).zip(queued) {
        assert_eq!(results.try_recv().unwrap(), oks([id]));
    }
}

#[test]
fn dropping_on_the_workers_own_thread_lets_it_finish() {
    let (scheduler, fake, held) = start_held(100);
    let last = scheduler.clone();
    let (sender, dropped) = mpsc::channel();
    let done = move |_| {
        drop(Arc::into_inner(last).expect("the last one"));
        sender.send(()).unwrap();
    };
    scheduler.submit(vec![short(1)], Control::default(), done).unwrap();
    let queued = submit(&scheduler, vec![long(2), short(3)], Control::default());
    drop(scheduler);
    fake.release([0]);
    assert_eq!(get(&held), oks([0]));
    get(&dropped);
    assert_eq!(get(&queued), oks([2, 3]));
    // The engine goes with the worker.
    wait_until(|| Arc::strong_count(&fake.0.0) == 1);
}

#[test]
fn a_posted_completion_may_block_on_the_scheduler_and_drop_it() {
    let (scheduler, fake, held) = start_held(100);
    let callbacks = Arc::new(Callbacks::default());
    let (sender, answers) = mpsc::channel();
    let last = (scheduler.clone(), callbacks.clone());
    let post = callbacks.clone();
    let done = move |results| {
        let closure = move || {
            let inner = last.0.run(vec![short(2)], &Control::default()).unwrap();
            // The last of both, on the callbacks' own thread.
            let scheduler = Arc::into_inner(last.0).expect("the last scheduler");
            drop(scheduler);
            drop(Arc::into_inner(last.1).expect("the last callbacks"));
            sender.send((results, inner)).unwrap();
        };
        post.post(Box::new(closure));
    };
    scheduler.submit(vec![short(1)], Control::default(), done).unwrap();
    drop((scheduler, callbacks));
    fake.release([0]);
    assert_eq!(get(&held), oks([0]));
    assert_eq!(get(&answers), (oks([1]), oks([2])));
    wait_until(|| Arc::strong_count(&fake.0.0) == 1);
}

#[test]
fn under_fire_every_call_is_answered_once_with_its_own_results() {
    const THREADS: u32 = 8;
    const CALLS: u32 = if cfg!(miri) { 20 } else { 400 };
    let (scheduler, _fake) = start(24, 10);
    let answered = Arc::new(AtomicUsize::new(0));
    let accepted = AtomicUsize::new(0);
    let check = |expected: &[u32], results: &[Result<u32>]| {
        assert_eq!(expected.len(), results.len());
        for (id, result) in expected.iter().zip(statuses(results)) {
            match result {
                Ok(found) => assert_eq!(found, *id),
                Err(Status::Cancelled | Status::DeadlineExceeded) => {}
                Err(status) => panic!("{status:?}"),
            }
        }
    };
    thread::scope(|scope| {
        for thread in 1..=THREADS {
            let (scheduler, answered, accepted) = (&scheduler, answered.clone(), &accepted);
            scope.spawn(move || {
                let mut random = u64::from(thread) * 0x9e37_79b9;
                let mut below = |n: u64| {
                    random =
                        random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (random >> 33) % n
                };
                let mut earlier = Vec::new();
                for call in 0..CALLS {
                    let jobs: Vec<Job> = (0..below(4) as u32)
                        .map(|i| Job {
                            id: thread << 24 | call << 4 | i,
                            tokens: if below(4) == 0 { 100 } else { below(11) as usize },
                        })
                        .collect();
                    let ids: Vec<u32> = jobs.iter().map(|job| job.id).collect();
                    let (token, mut control) = cancellable();
                    control.wait = below(2) == 0;
                    if below(3) == 0 {
                        control.deadline =
                            Some(Instant::now() + Duration::from_micros(below(2000)));
                    }
                    earlier.push(token);
                    if below(2) == 0 {
                        earlier.swap_remove(below(earlier.len() as u64) as usize).cancel();
                    }
                    let refused = if below(2) == 0 {
                        match scheduler.run(jobs, &control) {
                            Ok(results) => {
                                check(&ids, &results);
                                None
                            }
                            Err(error) => Some(error),
                        }
                    } else {
                        let answered = answered.clone();
                        let done = move |results: Vec<Result<u32>>| {
                            check(&ids, &results);
                            answered.fetch_add(1, Ordering::Relaxed);
                        };
                        let refused = scheduler.submit(jobs, control, done).err();
                        accepted.fetch_add(usize::from(refused.is_none()), Ordering::Relaxed);
                        refused
                    };
                    if let Some(error) = refused {
                        assert!(
                            matches!(
                                error.status(),
                                Status::Busy | Status::Cancelled | Status::DeadlineExceeded
                            ),
                            "{error}"
                        );
                    }
                }
            });
        }
    });
    drop(scheduler);
    let accepted = accepted.into_inner();
    assert!(accepted > (THREADS * CALLS / 32) as usize, "only {accepted} calls got in");
    assert_eq!(answered.load(Ordering::Relaxed), accepted);
}
