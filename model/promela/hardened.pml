/* The hardened protocol once more, in Promela, written after docs/protocol.md and independent of the Python engine: it shares
 * no code with it, only the meaning. compare.py runs both at the same bounds and compares states, transitions, depth, dead ends
 * and verdict; a difference is a mistake in one of the two.
 *
 * One step of the protocol is one transition: each option below is one d_step, all state is global, and a value that means
 * nothing any more is zeroed. What is computed on the way is hidden, so it is no part of the state.
 *
 * Covered: two ranks, one process of a rank at a time, crash, restart, wrong suspicion, failed vote, lost reply, leave, death
 * mark, join timeout, and clean-up that lags. Not covered: the loss of the store, two processes of one rank at a time. So the
 * nonces and the generation of the register stand still and are left out, and so are the steps `restore_members`,
 * `restore_register`, `check_incarnation` and `renew_incarnation`: to come to one of them is an error here.
 *
 * Bounds are macros: ITERATIONS, MIN_RANKS, LAG and the budgets. WITHOUT_x takes the guard x away, for the mutants that compare.py
 * knows. WATCH is the set of the properties to check. With DEAD_ENDS the states in which nothing can happen are counted, and
 * checked. To look at a counterexample: spin -p -t hardened.pml, after a run of the verifier with the same macros.
 */

#ifndef ITERATIONS
#define ITERATIONS 2
#endif
#ifndef MIN_RANKS
#define MIN_RANKS 1
#endif
#ifndef LAG
#define LAG 99
#endif
#ifndef CRASHES
#define CRASHES 0
#endif
#ifndef RESTARTS
#define RESTARTS 0
#endif
#ifndef SUSPICIONS
#define SUSPICIONS 0
#endif
#ifndef FAILED_VOTES
#define FAILED_VOTES 0
#endif
#ifndef LOST_REPLIES
#define LOST_REPLIES 0
#endif
#ifndef LEAVES
#define LEAVES 0
#endif
#ifndef DEAD_MARKS
#define DEAD_MARKS 0
#endif
#ifndef JOIN_TIMEOUTS
#define JOIN_TIMEOUTS 0
#endif
#ifndef WATCH
#define WATCH 1023
#endif

#define RANKS 2
#define MOST_NUMBER 3 /* of an incarnation: two restarts at most */
#if RESTARTS > 2 || ITERATIONS > 7
#error "the values below have room for two restarts and seven iterations"
#endif

/* --- Values ------------------------------------------------------------------------------------------------------------
 * A member is its incarnation's number and its rank. A list of members has an entry for each rank (number and holds; 0: not
 * listed), an epoch is the iteration at which its list took effect and the list, a record is a register value (0: none; genesis
 * is not 0, for attention is up in it). */

#define MEMBER(rank_, number_) ((number_) * 2 + (rank_))
#define RANK(m) ((m) & 1)
#define NUMBER(m) ((m) >> 1)
#define FIRST_MEMBER 2
#define LAST_MEMBER 7
#define BIT(m) (1 << (m))

#define ENTRY(list_, rank_) (((list_) >> ((rank_) == 0 -> 3 : 0)) & 7)
#define NUMBER_IN(list_, rank_) (ENTRY(list_, rank_) >> 1) /* 0: not listed */
#define HOLDS_IN(list_, rank_) (ENTRY(list_, rank_) & 1)
#define LISTED(list_, m) (NUMBER_IN(list_, RANK(m)) == NUMBER(m))
#define NEWER_LISTED(list_, m) (NUMBER_IN(list_, RANK(m)) > NUMBER(m))
#define LENGTH(list_) ((NUMBER_IN(list_, 0) > 0) + (NUMBER_IN(list_, 1) > 0))

#define EPOCH(since_, list_) ((since_) * 64 + (list_))
#define SINCE(epoch_) ((epoch_) >> 6)
#define LIST(epoch_) ((epoch_) & 63)

#define RECORD(iteration_, epoch_, committed_, winner_) (((iteration_) << 14) | ((epoch_) << 5) | ((committed_) << 4) | (winner_))
#define ATTENTION 8
#define GENESIS ATTENTION
#define ITERATION(r) ((r) >> 14)
#define EPOCH_OF(r) (((r) >> 5) & 511)
#define WINNER(r) ((r) & 7)
#define RAISED(r) ((r) | ATTENTION)
#define SAME(one_, other_) (RAISED(one_) == RAISED(other_))

/* Flags; 0 while it trains. Of two that the same member signed with, J outweighs F, and F outweighs O. */
#define F 1 /* its step failed, but it holds the model state */
#define J 2 /* it does not hold the state */
#define O 3 /* its step worked */

/* A set of signatures has three bits for each member, one for each flag. */
#define SIGNATURE(m, flag_) (1 << ((m) * 3 + (flag_) - 1))
#define FLAGS(set_, m) (((set_) >> ((m) * 3)) & 7)
#define FLAG(set_, m) ((FLAGS(set_, m) & 2) -> J : ((FLAGS(set_, m) & 1) -> F : O))

/* What a heartbeat tells; 0: nothing (silent). */
#define ALIVE 1
#define FADING 2 /* dead, and nobody can see it yet */
#define DEAD 3
#define LEFT 4

/* Why a process takes the step at which it stands. */
#define SLOW 1
#define JOIN 2
#define LEARN 3
#define COUNTED 4
#define AGAIN 5

/* Keys, as they stand in the queue of the clean-up; a list has its epoch for a name, which is 64 at least. */
#ifdef WITHOUT_fresh_count
#define COUNT_OF(k) 0
#else
#define COUNT_OF(k) (k)
#endif
#ifdef WITHOUT_fresh_arrived
#define ARRIVED_OF(k) 0
#else
#define ARRIVED_OF(k) (k)
#endif
#define COUNT_KEY(k) (1 + 4 * COUNT_OF(k))
#define FULL_KEY(k) (2 + 4 * (k))
#define ARRIVED_KEY(k) (3 + 4 * ARRIVED_OF(k))
#define QUEUE 30
#define WROTE 5

/* Properties, as bits of WATCH. */
#define S1 1
#define S2 2
#define S3 4
#define S4 8
#define S5 16
#define S6 32
#define S7 64
#define S8 128
#define L2 256
#define L3 512
#define HOLDS(property, condition) assert(!(WATCH & property) || (condition))

/* --- State ------------------------------------------------------------------------------------------------------------- */

mtype = {
	take_incarnation, create_register, read_members, sign, raise_attention, arrive, count_in, await_barrier, await_full,
	propose_same_epoch, read_register, read_arrived, read_heartbeat, write_members, propose_new_epoch, wake,
	recover, /* its step is `read_register` too */
	done, stopped, left, down
};

typedef Process {
	mtype at = take_incarnation;
	bit broken;		/* a message was lost on its connection, and it has yet to notice */
	byte me;		/* a member; 0: none yet */
	int record;		/* the latest record that it accepted, as the exact value last read */
	byte members;		/* the list of its epoch; 0 while it has not been read */
	bit member;		/* it takes part in the iteration of its record */
	byte flag;
	bit holds;		/* the model state, in truth */
	bit has_signed;
	bit filled;		/* it knows that the barrier is complete */
	byte mode;
	int pending;		/* the newer record whose list it has to read */
	int signatures;
	byte unheard;		/* missing members whose heartbeat it has yet to read */
	byte suspected;
	bit beating;		/* one of the missing was heard: this pass cannot close */
	int proposal;
	byte wrote[WROTE];	/* the lists that it wrote at this barrier, in this order; 0: none */
	short queue[QUEUE];	/* what its clean-up has yet to delete, in order */
	byte queued;		/* how many */
	bit join_timeout;	/* has passed */
	byte highest		/* for S5: the highest iteration in which a process of its rank took part */
};

#define HAS_WRITTEN(q, list_) \
	(q.wrote[0] == (list_) || q.wrote[1] == (list_) || q.wrote[2] == (list_) || q.wrote[3] == (list_) || q.wrote[4] == (list_))

Process p[RANKS];
#define my p[_pid]
#define K ITERATION(my.record)

/* The store. */
int counter;				/* the register: a record */
byte incarnation[RANKS];
int lists[2 * (ITERATIONS + 1)]; /* a bit for each epoch */
byte count[ITERATIONS + 1];
bit woken[ITERATIONS + 1];
int arrived[ITERATIONS + 1];
#define LIST_THERE(epoch_) ((lists[(epoch_) >> 5] >> ((epoch_) & 31)) & 1)

/* The environment. */
byte pulse[LAST_MEMBER + 1];
byte crashes = CRASHES;
byte restarts = RESTARTS;
byte suspicions = SUSPICIONS;
byte failed_votes = FAILED_VOTES;
byte lost_replies = LOST_REPLIES;
byte leaves = LEAVES;
byte dead_marks = DEAD_MARKS;
byte join_timeouts = JOIN_TIMEOUTS;
int leaked_keys;			/* of barriers: what may stay behind because a fault destroyed the intention to delete it; a bit for each */
int leaked_lists[2 * (ITERATIONS + 1)];

/* The ghost: what the properties have to remember. The protocol never reads it. */
byte decided_;		/* the highest iteration that was ever decided */
byte learned_;		/* the highest in which anyone took part */
int arrivals;		/* who has arrived at the open barrier, and with which vote */
byte promised;		/* the joiners that nobody may overlook */
byte silent[LAST_MEMBER + 1]; /* for each member: of whom it was told, at its present look at the barrier, that it is silent, dead or gone */

/* Scratch: set in a step before it is read there, and zeroed at its end. (Spin's own `hidden` does not go with its breadth-first
 * search.) */
int v;		/* a reply; the record that is learned */
int was;	/* the register before the step */
byte list, was_list;
short i; byte m, n, r;
byte votes, bad_votes, flag, size, continuing, stale, oldest;
bit there, any, all_ok;
byte old_queued;
int late_record;
int queue_keys, late_keys; /* before the step: the barrier keys that the process was to delete, and those that it may have written late */
int queue_lists[2 * (ITERATIONS + 1)];
int late_lists[2 * (ITERATIONS + 1)];
int old_record;
bit old_member;
mtype old_at;

inline zero_scratch() {
	v = 0; was = 0; list = 0; was_list = 0;
	i = 0; m = 0; n = 0; r = 0;
	votes = 0; bad_votes = 0; flag = 0; size = 0; continuing = 0; stale = 0; oldest = 0;
	there = 0; any = 0; all_ok = 0;
	old_queued = 0; late_record = 0; queue_keys = 0; late_keys = 0;
	do
	:: i < 2 * (ITERATIONS + 1) -> queue_lists[i] = 0; late_lists[i] = 0; i++
	:: else -> break
	od;
	i = 0;
	old_record = 0; old_member = 0; old_at = 0
}

/* --- The ghost --------------------------------------------------------------------------------------------------------- */

#define BARRIER_KEY_THERE(key) \
	(((key) & 3) == 1 -> count[(key) >> 2] > 0 : (((key) & 3) == 2 -> woken[(key) >> 2] : ((key) & 3) == 3 && arrived[(key) >> 2] != 0))

/* The keys that may stay behind should the process die in this step, or its queue be emptied: noted before it, by note_leak. */
inline note_queued(key) {
	if
	:: key >= 64 -> queue_lists[key >> 5] = queue_lists[key >> 5] | (1 << (key & 31))
	:: else -> queue_keys = queue_keys | (1 << key)
	fi
}

inline note_leak() {
	old_queued = my.queued;
	i = 0;
	do
	:: i < my.queued -> note_queued(my.queue[i]); i++
	:: else -> break
	od;
	i = 0;
	late_record = my.record;
	if
	:: my.record != 0 ->
		late_keys = (14 << (4 * K)) | (K > 0 -> 14 << (4 * (K - 1)) : 0);
		do
		:: i < WROTE && my.wrote[i] != 0 ->
			v = EPOCH(K + 1, my.wrote[i]);
			late_lists[v >> 5] = late_lists[v >> 5] | (1 << (v & 31));
			v = 0;
			i++
		:: else -> break
		od;
		i = 0
	:: else
	fi
}

/* Those of them that are there. `everything`: what it may have written late, too. */
inline leak(everything) {
	i = 1;
	do
	:: i < 4 * (ITERATIONS + 1) ->
		if
		:: (((queue_keys | (everything -> late_keys : 0)) >> i) & 1) && BARRIER_KEY_THERE(i) -> leaked_keys = leaked_keys | (1 << i)
		:: else
		fi;
		i++
	:: else -> break
	od;
	i = 0;
	do
	:: i < 2 * (ITERATIONS + 1) ->
		leaked_lists[i] = leaked_lists[i] | (lists[i] & (queue_lists[i] | (everything -> late_lists[i] : 0)));
		i++
	:: else -> break
	od;
	i = 0;
	if
	:: everything && late_record != 0 && ITERATION(counter) > ITERATION(late_record) && LIST_THERE(EPOCH_OF(late_record)) ->
		/* it may have decided without knowing, and would have deleted the list that it replaced */
		i = EPOCH_OF(late_record);
		leaked_lists[i >> 5] = leaked_lists[i >> 5] | (1 << (i & 31));
		i = 0
	:: else
	fi
}

/* After a step: what became of what the process was to delete? */
inline follow_leak() {
	if
	:: old_queued > 0 && my.queued == 0 -> leak(0)
	:: else
	fi
}

/* The register goes from `was` to `counter`, by a proposal of mine. */
inline observe_decision() {
	HOLDS(S2, ITERATION(counter) == decided_ + 1);
	list = LIST(EPOCH_OF(counter));
	was_list = LIST(EPOCH_OF(was));
	votes = 0;
	bad_votes = 0;
	m = FIRST_MEMBER;
	do
	:: m <= LAST_MEMBER ->
		if
		:: LISTED(list, m) ->
			HOLDS(S3, FLAGS(arrivals, m) != 0);
			HOLDS(S7, FLAGS(arrivals, m) == 0 ||
				(HOLDS_IN(list, RANK(m)) || EPOCH_OF(counter) == EPOCH_OF(was)) == (FLAG(arrivals, m) != J));
			HOLDS(S6, !NEWER_LISTED(was_list, m));
			if
			:: LISTED(was_list, m) && FLAGS(arrivals, m) != 0 ->
				votes++;
				bad_votes = bad_votes + ((FLAGS(arrivals, m) & 3) != 0)
			:: else
			fi
		:: else ->
			HOLDS(S3, !LISTED(was_list, m) || NEWER_LISTED(list, m) || (silent[my.me] & BIT(m)));
			HOLDS(L2, !(promised & BIT(m)) || NEWER_LISTED(list, m))
		fi;
		m++
	:: else -> break
	od;
	HOLDS(S3, ITERATION(was) > 0 || LENGTH(list) == RANKS || my.join_timeout);
	HOLDS(S3, LENGTH(list) >= MIN_RANKS);
	HOLDS(S8, ((counter & 16) != 0) == (votes > 0 && bad_votes == 0));
	decided_ = (ITERATION(counter) > decided_ -> ITERATION(counter) : decided_);
	arrivals = 0;
	promised = 0;
	m = FIRST_MEMBER;
	do
	:: m <= LAST_MEMBER -> silent[m] = 0; m++
	:: else -> break
	od
}

/* What a step means for the ghost, once the process has become what it becomes. */
inline observe_entry() {
	if
	:: my.record != 0 && old_record != 0 ->
		if
		:: my.member && !(old_member && SAME(my.record, old_record)) ->
			learned_ = (K > learned_ -> K : learned_);
			HOLDS(S5, K > my.highest)
		:: else ->
			if
			:: my.at == await_full && old_at != await_full && !my.member && !(my.record & ATTENTION) ->
				promised = promised | BIT(my.me)
			:: else
			fi
		fi
	:: else
	fi;
	my.highest = (my.member && my.record != 0 && K > my.highest -> K : my.highest)
}

/* --- The properties of a state ------------------------------------------------------------------------------------------- */

#define RUNS(q) (q.at != done && q.at != stopped && q.at != left && q.at != down)
#define LIVES(q) (q.at != stopped && q.at != left && q.at != down)

inline in_a_queue(key) {
	any = 0;
	r = 0;
	do
	:: r < RANKS ->
		if
		:: LIVES(p[r]) ->
			i = 0;
			do
			:: i < p[r].queued -> any = any || p[r].queue[i] == key; i++
			:: else -> break
			od
		:: else
		fi;
		r++
	:: else -> break
	od
}

/* Somebody still needs the list: the register or a record names it, or the process wrote it at this barrier. */
#define NEEDS_LIST(q, epoch_) \
	(LIVES(q) && ((q.record != 0 && EPOCH_OF(q.record) == (epoch_)) || \
	 (SINCE(epoch_) == ITERATION(q.record) + 1 && HAS_WRITTEN(q, LIST(epoch_)))))
#define STALE_LIST(epoch_) \
	(LIST_THERE(epoch_) && !(counter != 0 && EPOCH_OF(counter) == (epoch_)) && !NEEDS_LIST(p[0], epoch_) && !NEEDS_LIST(p[1], epoch_))

/* L3: a key stays behind only while somebody has yet to delete it, or because a fault destroyed the intention to. The barriers
 * from the one before the oldest that a live process knows are still to be cleaned by somebody. */
inline check_bounded_store() {
	stale = 0;
	oldest = ITERATION(counter);
	oldest = (LIVES(p[0]) && p[0].record != 0 && ITERATION(p[0].record) < oldest -> ITERATION(p[0].record) : oldest);
	oldest = (LIVES(p[1]) && p[1].record != 0 && ITERATION(p[1].record) < oldest -> ITERATION(p[1].record) : oldest);
	v = 1;
	do
	:: v < 64 && (v >> 2) + 1 >= oldest -> v = 64
	:: v >= 64 && v < 64 * (ITERATIONS + 1) && lists[v >> 5] == 0 -> v = v + 32 /* none in this word */
	:: v >= 64 * (ITERATIONS + 1) -> break
	:: else ->
		if
		:: (v < 64 -> BARRIER_KEY_THERE(v) && !((leaked_keys >> v) & 1) : STALE_LIST(v) && !((leaked_lists[v >> 5] >> (v & 31)) & 1)) ->
			in_a_queue(v);
			stale = stale + !any
		:: else
		fi;
		v++
	od;
	HOLDS(L3, stale == 0)
}

#define TAKES_PART(q) (q.member && q.record != 0)
/* S7 speaks of an epoch that was kept, too: that asserts that all its members hold the state. */
#define TAKEN_TO_HOLD(q) (LISTED(LIST(EPOCH_OF(q.record)), q.me) \
	&& (HOLDS_IN(LIST(EPOCH_OF(q.record)), RANK(q.me)) || SINCE(EPOCH_OF(q.record)) < ITERATION(q.record)))

inline check_participant(whose) {
	if
	:: TAKES_PART(p[whose]) ->
		HOLDS(S1, counter == 0 || ITERATION(counter) != ITERATION(p[whose].record) || SAME(p[whose].record, counter));
		HOLDS(S4, LISTED(p[whose].members, p[whose].me) && LISTED(LIST(EPOCH_OF(p[whose].record)), p[whose].me));
		HOLDS(S7, (p[whose].at != arrive && p[whose].at != wake && p[whose].at != done) ||
			!LISTED(LIST(EPOCH_OF(p[whose].record)), p[whose].me) || TAKEN_TO_HOLD(p[whose]) == p[whose].holds)
	:: else
	fi
}

inline check() {
	HOLDS(S1, !TAKES_PART(p[0]) || !TAKES_PART(p[1]) || ITERATION(p[0].record) != ITERATION(p[1].record) ||
		(SAME(p[0].record, p[1].record) && p[0].members == p[1].members));
	check_participant(0);
	check_participant(1);
	check_bounded_store();
	zero_scratch()
}

/* --- Around each step ---------------------------------------------------------------------------------------------------- */

#define CAN(step) (my.at == step && my.queued <= LAG && !my.broken)
/* A message without reply that does not arrive: neither that nor what breaks with it shows before the next reply is due. */
#define UNNOTICED(step) (my.at == step && my.queued <= LAG && (my.broken || lost_replies > 0))

inline before() {
	old_at = my.at;
	old_record = my.record;
	old_member = my.member;
	note_leak()
}

inline lose_message() {
	if
	:: !my.broken -> lost_replies--; my.broken = 1
	:: else
	fi
}

inline after() {
	follow_leak();
	observe_entry();
	check()
}

/* --- The store ----------------------------------------------------------------------------------------------------------- */

/* `v` is the reply. On a missing key a compare_set that expects something returns that and stores nothing. */
inline compare_set(expected, desired) {
	was = counter;
	if
	:: counter == expected -> v = desired; counter = v
	:: counter != expected && counter == 0 -> v = expected
	:: else -> v = counter
	fi
}

inline propose(expected, desired) {
#ifdef WITHOUT_compare_set
	was = counter;
	v = desired;
	counter = v;
#else
	compare_set(expected, desired);
#endif
	if
	:: was != 0 && was != counter -> observe_decision()
	:: else
	fi
}

inline append_signature(flag_) {
	arrived[ARRIVED_OF(K)] = arrived[ARRIVED_OF(K)] | SIGNATURE(my.me, flag_);
	if
	:: K == decided_ -> arrivals = arrivals | SIGNATURE(my.me, flag_)
	:: else
	fi
}

/* --- What a process becomes ---------------------------------------------------------------------------------------------- */

/* Go to another step of the same barrier; what the last closing pass found out is forgotten. */
inline go(where) {
	my.mode = 0;
	my.pending = 0;
	my.signatures = 0;
	my.unheard = 0;
	my.suspected = 0;
	my.beating = 0;
	my.proposal = 0;
	my.at = where
}

inline forget_barrier() {
	go(down);
	my.member = 0;
	my.flag = 0;
	my.holds = 0;
	my.has_signed = 0;
	my.filled = 0;
	my.members = 0;
	my.wrote[0] = 0;
	my.wrote[1] = 0;
	my.wrote[2] = 0;
	my.wrote[3] = 0;
	my.wrote[4] = 0
}

inline empty_queue() {
	do
	:: my.queued > 0 -> my.queued--; my.queue[my.queued] = 0
	:: else -> break
	od
}

/* The process ends; only its name stays, for as long as the model shows it. */
inline end(how) {
	forget_barrier();
	empty_queue();
	my.record = 0;
	my.join_timeout = 0;
	my.at = how
}

inline enqueue(key) {
#ifdef WITHOUT_clean_up
	skip;
#else
	i = 0;
	do
	:: i < my.queued && my.queue[i] != key -> i++
	:: else -> break
	od;
	if
	:: i < my.queued
	:: else -> my.queue[my.queued] = key; my.queued++
	fi;
#endif
}

inline enqueue_barrier(k) {
	enqueue(COUNT_KEY(k));
	enqueue(FULL_KEY(k));
	enqueue(ARRIVED_KEY(k))
}

/* The lists that I wrote at this barrier and that `v` does not point at. */
inline enqueue_in_vain() {
	n = 0;
	do
	:: n < WROTE && my.wrote[n] != 0 ->
		if
		:: EPOCH(K + 1, my.wrote[n]) != EPOCH_OF(v) -> enqueue(EPOCH(K + 1, my.wrote[n]))
		:: else
		fi;
		n++
	:: else -> break
	od
}

inline remember_list(list_) {
	n = 0;
	do
	:: n < WROTE && my.wrote[n] != 0 && my.wrote[n] != list_ -> n++
	:: else -> break
	od;
	assert(n < WROTE);
	my.wrote[n] = list_
}

/* The model's last iteration has been decided: this process has seen enough. What it would clean up from here on stays to be done. */
inline finish() {
	n = 0;
	do
	:: n < WROTE && my.wrote[n] != 0 -> enqueue(EPOCH(K + 1, my.wrote[n])); n++
	:: else -> break
	od;
	if
	:: my.record != 0 ->
		if
		:: K > 0 -> enqueue_barrier(K - 1)
		:: else
		fi;
		enqueue_barrier(K)
	:: else
	fi;
	forget_barrier();
	my.record = 0;
	my.join_timeout = 0;
	my.at = done
}

/* 20. Take part in the iteration of `v`, whose list is `list`. */
inline decided() {
	enqueue_in_vain();
	if
	:: WINNER(v) == my.me ->
		if
		:: K > 0 ->
			enqueue_barrier(K - 1);
			if
			:: EPOCH_OF(v) != EPOCH_OF(my.record) -> enqueue(EPOCH_OF(my.record))
			:: else
			fi
		:: else
		fi;
#ifdef WITHOUT_spare_the_next
		enqueue_barrier(K + 1);
#endif
		skip
	:: else
	fi;
	any = my.holds;
	forget_barrier();
	my.holds = any;
	my.record = v;
	my.members = list;
	my.member = 1;
	my.join_timeout = 0;
	my.at = (WINNER(v) == my.me -> wake : (ITERATION(v) < ITERATIONS -> arrive : done))
}

/* Start joining at `v`, whose list is read first unless it is known (`there`: it is in `list`). */
inline join_at() {
	if
	:: ITERATION(v) >= ITERATIONS -> finish()
	:: else ->
#ifdef WITHOUT_drop_state
		flag = (my.holds -> F : J);
#else
		flag = J;
#endif
		forget_barrier();
		my.record = v;
		my.flag = flag;
		if
		:: ITERATION(v) > 0 && !there -> my.mode = JOIN; my.at = read_members
		:: else -> list = (ITERATION(v) > 0 -> list : 0); join()
		fi
	fi
}

/* 3. With the list at hand, in `list`. Without a second process nobody can be listed there in my place. */
inline join() {
	assert(!NEWER_LISTED(list, my.me));
	my.members = list;
	go(sign)
}

/* 20. Drop the model state, and join at `v`. */
inline left_out() {
	assert(ITERATION(v) > K);
	enqueue_in_vain();
	if
	:: K > 0 -> enqueue_barrier(K - 1)
	:: else
	fi;
	if
	:: ITERATION(v) >= K + 2 ->
		enqueue_barrier(K);
		if
		:: EPOCH_OF(v) != EPOCH_OF(my.record) && K > 0 -> enqueue(EPOCH_OF(my.record)) /* perhaps I replaced it, and the reply was lost */
		:: else
		fi
	:: else
	fi;
	there = 1;
	join_at()
}

/* 20. The list of `v` is at hand, in `list`: am I in it? */
inline learned() {
	if
#ifdef WITHOUT_membership
	:: ITERATION(v) == K + 1 -> decided()
#else
	:: ITERATION(v) == K + 1 && LISTED(list, my.me) -> decided()
#endif
	:: else -> left_out()
	fi
}

/* 19. A newer record, `v`. */
inline learn() {
	assert(ITERATION(v) > K);
	if
	:: my.member && ITERATION(v) == K + 1 && EPOCH_OF(v) == EPOCH_OF(my.record) ->
		list = my.members;
		decided()
	:: else ->
		list = LIST(EPOCH_OF(v));
		if
		:: SINCE(EPOCH_OF(v)) == K + 1 && HAS_WRITTEN(my, list) -> learned()
		:: else ->
			go(read_members);
			my.mode = LEARN;
			my.pending = v
		fi
	fi
}

/* 6 and 7. My signature and the flag are up: members count themselves in, joiners wait (founders look at once). */
inline announced() {
	if
	:: my.mode == COUNTED -> my.at = await_barrier; my.mode = 0
	:: my.mode == AGAIN -> my.at = read_register; my.mode = SLOW
	:: else -> my.at = (my.member -> count_in : (K == 0 -> read_arrived : await_full)); my.mode = 0
	fi
}

inline raise() {
	compare_set(my.record, RAISED(my.record));
	if
	:: was != counter && !my.member -> promised = promised | BIT(my.me)
	:: else
	fi
}

#ifdef WITHOUT_failure_attention
#define MUST_RAISE (my.flag != O && !(my.record & ATTENTION) && !my.member)
#elif defined(WITHOUT_joiner_attention)
#define MUST_RAISE (my.flag != O && !(my.record & ATTENTION) && my.member)
#else
#define MUST_RAISE (my.flag != O && !(my.record & ATTENTION))
#endif

/* 4, 7 and 12. Only o goes without saying; any other flag has to be announced. */
inline put_signature(flag_, delivered) {
	if
	:: delivered -> append_signature(flag_)
	:: !(delivered)
	fi;
	my.flag = flag_;
	my.has_signed = 1;
	if
	:: my.mode == SLOW -> go(read_register); my.mode = SLOW
	:: my.mode != SLOW && MUST_RAISE -> my.at = raise_attention
	:: else -> announced()
	fi
}

/* The barrier is full: everyone competes, unless someone has raised attention. */
inline complete() {
#ifdef WITHOUT_look_after_full
	go(propose_same_epoch);
#else
	go((my.record & ATTENTION -> read_arrived : propose_same_epoch));
#endif
	my.filled = 1
}

/* 8. One more has arrived. */
inline be_counted(flag_) {
	if
	:: K == decided_ && FLAGS(arrivals, my.me) == 0 -> arrivals = arrivals | SIGNATURE(my.me, flag_)
	:: else
	fi;
	count[COUNT_OF(K)]++;
	there = count[COUNT_OF(K)] >= LENGTH(my.members)
}

inline wait_counted() {
	if
	:: there -> complete()
	:: else -> go(await_barrier)
	fi
}

/* 12. The patience ran out: someone is missing. */
inline slow() {
	go((my.has_signed -> read_register : sign));
	my.mode = SLOW
}

#ifdef WITHOUT_min_ranks
#define TOO_FEW false
#else
#define TOO_FEW (LENGTH(list) < MIN_RANKS)
#endif
#ifdef WITHOUT_founding
#define UNFOUNDED false
#else
#define UNFOUNDED (K == 0 && LENGTH(list) < RANKS && !my.join_timeout)
#endif

/* 16. Who goes on? Of each rank the newest incarnation that signed; if the barrier is full, the members too. */
inline close() {
	list = 0;
	continuing = 0;
	m = FIRST_MEMBER;
	do
	:: m <= LAST_MEMBER -> /* in the order of their numbers, so that the newest is the last one put down */
		if
		:: FLAGS(my.signatures, m) != 0 || (my.filled && LISTED(my.members, m)) ->
			flag = (FLAGS(my.signatures, m) != 0 -> FLAG(my.signatures, m) : O);
			size = (RANK(m) == 0 -> 3 : 0);
			list = (list & (7 << (3 - size))) | ((NUMBER(m) * 2 + (flag != J)) << size);
			/* votes per rank, two bits each: 1 continues with o, 2 continues with another flag */
			continuing = (continuing & (3 << (2 - 2 * RANK(m)))) |
				((LISTED(my.members, m) -> (flag == O -> 1 : 2) : 0) << (2 * RANK(m)))
		:: else
		fi;
		m++
	:: else -> break
	od;
	all_ok = (continuing & 10) == 0;
#ifdef WITHOUT_votes
	all_ok = 1;
#endif
#ifdef WITHOUT_somebody_voted
	any = 1;
#else
	any = continuing != 0;
#endif
	if
	:: my.beating || TOO_FEW || UNFOUNDED -> go(await_full)
	:: else ->
		n = my.suspected;
		go(write_members);
		my.suspected = n;
		my.proposal = RECORD(K + 1, EPOCH(K + 1, list), any && all_ok, my.me)
	fi
}

/* 14. Who has signed? */
inline look_at_signatures() {
	silent[my.me] = 0;
	v = arrived[ARRIVED_OF(K)];
	any = 0;
	n = 0;
	m = FIRST_MEMBER;
	do
	:: m <= LAST_MEMBER ->
		any = any || (FLAGS(v, m) != 0 && RANK(m) == _pid && m > my.me);
		if
		:: !my.filled && LISTED(my.members, m) && FLAGS(v, m) == 0 ->
			/* missing, unless a newer incarnation signed */
			i = m + RANKS;
			do
			:: i <= LAST_MEMBER && FLAGS(v, i) == 0 -> i = i + RANKS
			:: else -> break
			od;
			n = n | (i <= LAST_MEMBER -> 0 : BIT(m))
		:: else
		fi;
		m++
	:: else -> break
	od;
	assert(!any); /* superseded: that takes a second process */
	if
	:: FLAGS(v, my.me) == 0 && !my.filled -> go(sign); my.mode = SLOW; my.has_signed = 0
	:: else ->
		go(read_heartbeat);
		my.signatures = v;
		my.unheard = n;
#ifdef WITHOUT_heartbeats
		close();
#else
		if
		:: n == 0 -> close()
		:: else
		fi;
#endif
	fi
}

/* 15. The member of rank `whose` is among the missing. */
#define MISSING(whose) (my.unheard & ((whose) == 0 -> 84 : 168)) /* the bits of the members of that rank */

inline hear(whose, mistaken) {
	n = MISSING(whose);
	m = (n == BIT(MEMBER(whose, 1)) -> MEMBER(whose, 1) : (n == BIT(MEMBER(whose, 2)) -> MEMBER(whose, 2) : MEMBER(whose, 3)));
	my.unheard = my.unheard & ~n;
	if
	:: !mistaken && (pulse[m] == ALIVE || pulse[m] == FADING) -> my.beating = 1
	:: else -> silent[my.me] = silent[my.me] | n
	fi;
	my.suspected = (my.beating -> 0 : my.suspected | n);
	my.signatures = (my.beating -> 0 : my.signatures);
	if
	:: my.unheard == 0 -> close()
	:: else
	fi
}

#define ALIVE_MISSING(whose) \
	(((my.unheard & BIT(MEMBER(whose, 1))) && pulse[MEMBER(whose, 1)] == ALIVE) \
	 || ((my.unheard & BIT(MEMBER(whose, 2))) && pulse[MEMBER(whose, 2)] == ALIVE) \
	 || ((my.unheard & BIT(MEMBER(whose, 3))) && pulse[MEMBER(whose, 3)] == ALIVE))

/* --- Broken connections ---------------------------------------------------------------------------------------------------- */

/* Steps with a reply: those that only read, and those that may change the store. */
#define READS (my.at == read_members || my.at == await_barrier || my.at == await_full || my.at == read_register || \
	my.at == read_arrived || my.at == read_heartbeat || my.at == recover)
#define CHANGES (my.at == take_incarnation || my.at == create_register || my.at == raise_attention || my.at == arrive || \
	my.at == count_in || my.at == propose_same_epoch || my.at == propose_new_epoch)
#define WOULD_CHANGE (my.at == take_incarnation || my.at == arrive || my.at == count_in || \
	counter == (my.at == create_register -> 0 : my.record))

/* 22. There is a new connection. What was decided before the operation was issued (the vote) stays; nobody knows whether the
 * operation was applied, so from here on the rank is not counted at this barrier again. */
inline reconnect() {
	assert((my.unheard & (my.unheard - 1)) == 0); /* one transition stands for the loss of any one heartbeat that is read */
	if
	:: my.at == arrive -> my.flag = O; my.holds = 1
	:: else
	fi;
	empty_queue();
	my.broken = 0;
	if
	:: my.record == 0
#ifdef WITHOUT_add_once
	:: my.record != 0 && (my.at == arrive || my.at == count_in || my.at == await_barrier) -> my.at = count_in
	:: my.record != 0 && my.at != arrive && my.at != count_in && my.at != await_barrier -> go(recover); my.has_signed = 0; my.filled = 0
#else
	:: my.record != 0 -> go(recover); my.has_signed = 0; my.filled = 0
#endif
	fi
}

/* 22. The register still has my record. */
inline rejoin() {
	if
	:: K >= ITERATIONS -> go(done)
	:: K < ITERATIONS && my.member -> go(sign); my.mode = AGAIN
	:: K < ITERATIONS && !my.member && K > 0 && my.members == 0 -> go(read_members); my.mode = JOIN
	:: else -> list = my.members; join()
	fi
}

/* --- The steps of a rank -------------------------------------------------------------------------------------------------- */

active [RANKS] proctype rank() {
	do
	/* 1. */
	:: d_step { CAN(take_incarnation) -> before();
		incarnation[_pid]++;
		my.me = MEMBER(_pid, incarnation[_pid]);
		pulse[my.me] = ALIVE;
		my.at = create_register;
		after() }
	/* 2. */
	:: d_step { CAN(create_register) -> before();
		compare_set(0, GENESIS);
		there = 0;
		join_at();
		after() }
	/* 3 and 19. A list that is gone: the register has moved on. */
	:: d_step { CAN(read_members) -> before();
		v = (my.pending != 0 -> my.pending : my.record);
		list = LIST(EPOCH_OF(v));
		if
		:: !LIST_THERE(EPOCH_OF(v)) -> my.at = read_register
		:: LIST_THERE(EPOCH_OF(v)) && my.mode == LEARN -> learned()
		:: else -> join()
		fi;
		after() }
	/* 4, 7 and 12. */
	:: d_step { CAN(sign) -> before();
		assert(my.flag != 0);
		put_signature(my.flag, 1);
		after() }
	:: d_step { UNNOTICED(sign) -> before();
		lose_message();
		put_signature(my.flag, 0);
		after() }
	/* 5 and 7. */
	:: d_step { CAN(raise_attention) -> before();
		raise();
		if
		:: v == RAISED(my.record) -> my.record = v; announced()
		:: else -> learn()
		fi;
		after() }
	/* 7 and 8, as training ends: with a vote of ok count myself in, otherwise sign first. */
	:: d_step { CAN(arrive) -> before();
		my.flag = O;
		my.holds = 1;
		be_counted(O);
		wait_counted();
		after() }
	:: d_step { CAN(arrive) && failed_votes > 0 -> before();
		failed_votes--;
		flag = (my.holds -> F : J);
#ifdef WITHOUT_attention_first
		be_counted(flag);
		go(sign);
		my.mode = COUNTED;
		my.flag = flag;
#else
		put_signature(flag, 1);
#endif
		after() }
	:: d_step { UNNOTICED(arrive) && failed_votes > 0 -> before();
		failed_votes--;
		lose_message();
		flag = (my.holds -> F : J);
		put_signature(flag, 0);
		after() }
	:: d_step { CAN(count_in) -> before();
		be_counted(my.flag);
		wait_counted();
		after() }
	/* 9. */
	:: d_step { CAN(await_barrier) -> before();
		if
		:: count[COUNT_OF(K)] >= LENGTH(my.members) -> complete()
#ifdef WITHOUT_timeout_decides_nothing
		:: else -> go(arrive); my.flag = 0; my.has_signed = 0
#else
		:: else -> slow()
#endif
		fi;
		after() }
	/* 10. */
	:: d_step { CAN(await_full) -> before();
		if
		:: woken[K] -> go(read_register); my.mode = SLOW
		:: else -> slow()
		fi;
		after() }
	/* 11. */
	:: d_step { CAN(propose_same_epoch) -> before();
		my.proposal = RECORD(K + 1, EPOCH_OF(my.record), 1, my.me);
		propose(my.record, my.proposal);
		if
		:: v == my.proposal -> list = my.members; decided()
		:: v != my.proposal && v == RAISED(my.record) -> my.record = v; complete()
		:: else -> learn()
		fi;
		after() }
	/* 13. */
	:: d_step { CAN(read_register) -> before();
		v = counter;
		if
		:: my.mode == JOIN -> there = 0; join_at()
		:: my.mode != JOIN && ITERATION(v) > K -> learn()
		:: else -> assert(SAME(v, my.record)); my.record = v; go(read_arrived)
		fi;
		after() }
	/* 14. */
	:: d_step { CAN(read_arrived) -> before();
		look_at_signatures();
		after() }
	/* 15. In any order; an answer of a living member may be missed, which is the fault of a wrong suspicion. */
	:: d_step { CAN(read_heartbeat) && MISSING(0) -> before(); hear(0, 0); after() }
	:: d_step { CAN(read_heartbeat) && MISSING(1) -> before(); hear(1, 0); after() }
	:: d_step { CAN(read_heartbeat) && ALIVE_MISSING(0) && suspicions > 0 -> before(); suspicions--; hear(0, 1); after() }
	:: d_step { CAN(read_heartbeat) && ALIVE_MISSING(1) && suspicions > 0 -> before(); suspicions--; hear(1, 1); after() }
	/* 17. */
	:: d_step { CAN(write_members) -> before();
		v = EPOCH_OF(my.proposal);
		lists[v >> 5] = lists[v >> 5] | (1 << (v & 31));
		remember_list(LIST(v));
		my.at = propose_new_epoch;
		after() }
	:: d_step { UNNOTICED(write_members) -> before();
		lose_message();
		v = EPOCH_OF(my.proposal);
		remember_list(LIST(v));
		my.at = propose_new_epoch;
		after() }
	/* 18. */
	:: d_step { CAN(propose_new_epoch) -> before();
		propose(my.record, my.proposal);
		if
		:: v == my.proposal -> list = LIST(EPOCH_OF(v)); decided()
#ifdef WITHOUT_look_again
		:: v != my.proposal && v == RAISED(my.record) -> my.record = v
#else
		:: v != my.proposal && v == RAISED(my.record) -> my.record = v; go(read_arrived)
#endif
		:: else -> learn()
		fi;
		after() }
	/* 20. */
	:: d_step { CAN(wake) -> before();
		woken[K - 1] = 1;
		my.at = (K < ITERATIONS -> arrive : done);
		after() }
	:: d_step { UNNOTICED(wake) -> before();
		lose_message();
		my.at = (K < ITERATIONS -> arrive : done);
		after() }
	/* 21. Off the critical path: at any later time, one key after the other. */
	:: d_step { my.queued > 0 && my.at != done && my.broken -> before();
		empty_queue();
		after() }
	:: d_step { my.queued > 0 && my.at != done && !my.broken -> before();
		v = my.queue[0];
		i = 0;
		do
		:: i + 1 < my.queued -> my.queue[i] = my.queue[i + 1]; i++
		:: else -> break
		od;
		my.queued--;
		my.queue[my.queued] = 0;
		if
		:: v >= 64 ->
			lists[v >> 5] = lists[v >> 5] & ~(1 << (v & 31));
			leaked_lists[v >> 5] = leaked_lists[v >> 5] & ~(1 << (v & 31))
		:: v < 64 && (v & 3) == 1 -> count[v >> 2] = 0
		:: v < 64 && (v & 3) == 2 -> woken[v >> 2] = 0
		:: v < 64 && (v & 3) == 3 -> arrived[v >> 2] = 0
		fi;
		leaked_keys = (v < 64 -> leaked_keys & ~(1 << v) : leaked_keys);
		after() }

	/* 22. What does the register say now? Without a store loss it has my record, or a newer one. */
	:: d_step { CAN(recover) -> before();
		v = counter;
		assert(v != 0 && ITERATION(v) >= K);
		if
		:: SAME(v, my.record) -> my.record = v; rejoin()
		:: !SAME(v, my.record) && K > 0 && my.members == 0 -> there = 0; join_at()
		:: else -> learn()
		fi;
		after() }
	/* The connection breaks. What was lost with it, the request or the reply, is told apart where it makes a difference. */
	:: d_step { my.broken && ((my.queued <= LAG && (READS || CHANGES)) || (my.at == done && my.record != 0)) -> before();
		reconnect();
		after() }
	:: d_step { !my.broken && lost_replies > 0 && my.queued <= LAG && (READS || (CHANGES && WOULD_CHANGE)) -> before();
		lost_replies--;
		reconnect();
		after() }
	:: d_step { !my.broken && lost_replies > 0 && my.queued <= LAG && CHANGES -> before();
		lost_replies--;
		if
		:: my.at == take_incarnation -> incarnation[_pid]++
		:: my.at == create_register -> compare_set(0, GENESIS)
		:: my.at == raise_attention -> raise()
		:: my.at == arrive -> be_counted(O)
		:: my.at == count_in -> be_counted(my.flag)
		:: my.at == propose_same_epoch ->
			v = RECORD(K + 1, EPOCH_OF(my.record), 1, my.me);
			propose(my.record, v)
		:: my.at == propose_new_epoch -> propose(my.record, my.proposal)
		fi;
		reconnect();
		after() }

	/* What can happen to it. */
	:: d_step { RUNS(my) && crashes > 0 -> /* crash */
		crashes--;
		if
		:: my.me != 0 -> pulse[my.me] = FADING
		:: else
		fi;
		note_leak();
		leak(1);
		end(down);
		my.broken = 0;
		my.me = 0;
		check() }
	:: d_step { my.at == down && restarts > 0 -> /* restart */
		restarts--;
		my.at = take_incarnation;
		check() }
	:: d_step { my.at == arrive && my.queued == 0 && leaves > 0 -> /* leave, once everything is cleaned up */
		leaves--;
		pulse[my.me] = LEFT;
		note_leak();
		leak(1);
		end(left);
		check() }
	:: d_step { RUNS(my) && my.record != 0 && K == 0 && !my.join_timeout && join_timeouts > 0 ->
		join_timeouts--;
		my.join_timeout = 1;
		check() }
	od
}

/* --- The environment as a whole ------------------------------------------------------------------------------------------- */

#define OVER(q) (q.at == done || q.at == stopped || q.at == left || q.at == down)
#define GONE(q) (q.at == stopped || q.at == left || q.at == down)
#define NUMBER_ALIVE (!GONE(p[0]) + !GONE(p[1]))

#ifdef DEAD_ENDS
c_decl {
	static long dead_ends;
	static void tell_dead_ends(void) { printf("%ld dead ends\n", dead_ends); }
}
#endif

#define FADES(m) \
	:: d_step { pulse[m] == FADING -> pulse[m] = 0 } /* go_stale */ \
	:: d_step { pulse[m] == FADING && dead_marks > 0 -> dead_marks--; pulse[m] = DEAD } /* mark_dead */

active proctype environment() {
	do
	FADES(2)
	FADES(3)
	FADES(4)
	FADES(5)
	FADES(6)
	FADES(7)
#ifdef DEAD_ENDS
	/* Where nothing can happen any more, Spin finds out by itself: `timeout` holds when no other option of any process does. The
	 * step leads back to where it is, so it adds one transition for each dead end and nothing else. */
	:: d_step { timeout ->
		c_code { if (!dead_ends++) atexit(tell_dead_ends); };
		assert((OVER(p[0]) && OVER(p[1])) || NUMBER_ALIVE < MIN_RANKS) }
#endif
	od
}
