"""The native half of launch.py, in LLVM's text: how threads share out the tasks of a program, wait, and sleep.

Every thread walks the same list of launches.  In each it runs first its own share, then pieces of the tail, then the
shares of threads that have not come, and waits until all tasks are done.

share   3/4 of the tasks in one piece a thread, the same for the same thread every time: a kernel that streams weights
        is fastest straight through, and a core finds what it has asked for.  `taken` has a bit for each share
tail    the rest, in eighths of a share, claimed from the counter `next`
wait    a thread with nothing to do asks for the cache lines its share of the next stream begins with (at most
        AHEAD_BYTES), so that memory does not idle behind a launch of a single task; then it pauses, then yields

All words that threads write carry the number of the run (the epoch) in their upper half: a thread that wakes up in a
later run finds nothing to claim.  Runs are counted for the whole process, because programs may change hands: a late
thread of other workers, which cut a launch into other shares, must not take the run for its own.

Kernels run with the CPU's usual float state, whatever the program around lutra has set: round to nearest, subnormals
kept, no traps.  The caller of a run gets its own state back.
"""

from __future__ import annotations

import re

AHEAD_BYTES = 64 << 10  # read in some 5 us by a thread; more is wasted when its CPU is taken and others run its share
SPINS = 4000  # pauses between runs, before a helper sleeps
PATIENCE = 400  # looks at an unfinished launch, before the CPU is given up: others may need it to finish

LINE = 8  # words of 8 bytes in a cache line

# Where the fields are, in words.  The control block has one a cache line, the epoch first.
_CONTROL = ("epoch", "stop", "program", "sleepers", "threads", "spins", "syscall", "yield", "number", "epochs")
CONTROL = {name: LINE * line for line, name in enumerate(_CONTROL)}
# A program is one line with the number of launches, then three a launch: what it is; what threads take from; what is
# done.  total, next, taken, done = epoch << 32 | number.  `ahead` is the record of the next launch with a stream.
RECORD = {
    "function": 0, "args": 1, "tasks": 2, "rows": 3, "total": 4, "stream": 5, "bytes": 6, "ahead": 7,
    "next": LINE, "taken": LINE + 1, "done": 2 * LINE,
}  # fmt: skip
LINES = 3

# `AT %record total done` stands for the addresses %record.total and %record.done.
_TEXT = """
; tasks of a thread's own share: 3/4 of all, divided by threads
define internal i64 @lutra_share(i64 %tasks, i64 %threads) alwaysinline {
  %three = mul i64 %tasks, 3
  %most = lshr i64 %three, 2
  %share = udiv i64 %most, %threads
  ret i64 %share
}

; where launch i of a program is
define internal ptr @lutra_record(ptr %program, i64 %i) alwaysinline {
  %before = mul i64 %i, RECORD_WORDS
  %offset = add i64 %before, LINE_WORDS
  %record = getelementptr i64, ptr %program, i64 %offset
  ret ptr %record
}

define void @lutra_participate(ptr %control, i64 %epoch, ptr %program, i64 %index) #0 {
entry:
  %target.var = alloca i64, align 8
  %cursor.var = alloca i64, align 8
  %limit.var = alloca i64, align 8
  store i64 0, ptr %target.var, align 8
  store i64 0, ptr %cursor.var, align 8
  store i64 0, ptr %limit.var, align 8
  AT %control threads yield
  %threads = load atomic i64, ptr %control.threads monotonic, align 8
  %yield = load ptr, ptr %control.yield, align 8
  %few = call i64 @llvm.umin.i64(i64 %threads, i64 32)
  %has.share = icmp ult i64 %index, %few
  %low = and i64 %index, 31
  %low.bit = shl i64 1, %low
  %bit = select i1 %has.share, i64 %low.bit, i64 0
  %launches = load i64, ptr %program, align 8
  %tag = shl i64 %epoch, 32
  br label %launch
launch:
  %i = phi i64 [ 0, %entry ], [ %i.next, %finished ]
  %more = icmp slt i64 %i, %launches
  br i1 %more, label %prepare, label %out
prepare:
  %record = call ptr @lutra_record(ptr %program, i64 %i)
  AT %record args total ahead next taken done
  %function = load ptr, ptr %record, align 8
  %args = load ptr, ptr %record.args, align 8
  %target = load i64, ptr %record.ahead, align 8
  %total = load atomic i64, ptr %record.total acquire, align 8
  %total.tag = and i64 %total, -4294967296
  %ours = icmp eq i64 %total.tag, %tag
  br i1 %ours, label %split, label %out
split:
  %tasks = and i64 %total, 4294967295
  %share = call i64 @lutra_share(i64 %tasks, i64 %threads)
  %none = icmp eq i64 %share, 0
  %shares = select i1 %none, i64 0, i64 %few
  %tail = mul i64 %shares, %share
  %pieces = shl i64 %threads, 3
  %eighth = udiv i64 %tasks, %pieces
  %piece = call i64 @llvm.umax.i64(i64 %eighth, i64 1)
  %past.shares = shl i64 1, %shares
  %all = sub i64 %past.shares, 1
  %mine = and i64 %all, %bit
  %owns = icmp ne i64 %mine, 0
  br i1 %owns, label %own, label %claim

own:
  %mask = load atomic i64, ptr %record.taken acquire, align 8
  %mask.tag = and i64 %mask, -4294967296
  %mask.ours = icmp eq i64 %mask.tag, %tag
  br i1 %mask.ours, label %own.free, label %out
own.free:
  %already = and i64 %mask, %bit
  %free = icmp eq i64 %already, 0
  br i1 %free, label %own.take, label %claim
own.take:
  %mask.new = or i64 %mask, %bit
  %own.pair = cmpxchg ptr %record.taken, i64 %mask, i64 %mask.new acq_rel acquire, align 8
  %own.won = extractvalue { i64, i1 } %own.pair, 1
  br i1 %own.won, label %whole, label %own

claim:
  %old = load atomic i64, ptr %record.next acquire, align 8
  %old.tag = and i64 %old, -4294967296
  %still = icmp eq i64 %old.tag, %tag
  br i1 %still, label %left, label %out
left:
  %passed = and i64 %old, 4294967295
  %from = add i64 %tail, %passed
  %any = icmp ult i64 %from, %tasks
  br i1 %any, label %take, label %steal
take:
  %far = add i64 %from, %piece
  %to = call i64 @llvm.umin.i64(i64 %far, i64 %tasks)
  %count = sub i64 %to, %from
  %new = add i64 %old, %count
  %pair = cmpxchg ptr %record.next, i64 %old, i64 %new acq_rel acquire, align 8
  %won = extractvalue { i64, i1 } %pair, 1
  br i1 %won, label %work, label %claim

steal:
  %seen = load atomic i64, ptr %record.taken acquire, align 8
  %seen.tag = and i64 %seen, -4294967296
  %seen.ours = icmp eq i64 %seen.tag, %tag
  br i1 %seen.ours, label %steal.look, label %out
steal.look:
  %open = xor i64 %seen, -1
  %orphans = and i64 %open, %all
  %nothing = icmp eq i64 %orphans, 0
  br i1 %nothing, label %wait, label %steal.take
steal.take:
  %orphan = call i64 @llvm.cttz.i64(i64 %orphans, i1 true)
  %orphan.bit = shl i64 1, %orphan
  %seen.new = or i64 %seen, %orphan.bit
  %steal.pair = cmpxchg ptr %record.taken, i64 %seen, i64 %seen.new acq_rel acquire, align 8
  %stolen = extractvalue { i64, i1 } %steal.pair, 1
  br i1 %stolen, label %whole, label %steal

whole:
  %which = phi i64 [ %index, %own.take ], [ %orphan, %steal.take ]
  %share.begin = mul i64 %which, %share
  %share.end = add i64 %share.begin, %share
  br label %work
work:
  %begin = phi i64 [ %share.begin, %whole ], [ %from, %take ]
  %end = phi i64 [ %share.end, %whole ], [ %to, %take ]
  call void %function(ptr %args, i64 %begin, i64 %end)
  %did = sub i64 %end, %begin
  %before = atomicrmw add ptr %record.done, i64 %did acq_rel, align 8
  br label %claim

wait:
  %turn = phi i64 [ 0, %steal.look ], [ %turn, %aimed ], [ %turn, %ask ], [ %turn.next, %again ]
  %done = load atomic i64, ptr %record.done acquire, align 8
  %complete = icmp eq i64 %done, %total
  br i1 %complete, label %finished, label %check
check:
  %done.tag = and i64 %done, -4294967296
  %current = icmp eq i64 %done.tag, %tag
  br i1 %current, label %idle, label %out
idle:
  %known = load i64, ptr %target.var, align 8
  %is.known = icmp eq i64 %known, %target
  br i1 %is.known, label %ahead, label %aim
aim:
  store i64 %target, ptr %target.var, align 8
  store i64 0, ptr %cursor.var, align 8
  store i64 0, ptr %limit.var, align 8
  %has.target = icmp ne i64 %target, 0
  %can.ask = and i1 %has.target, %has.share
  br i1 %can.ask, label %measure, label %aimed
measure:
  %coming = inttoptr i64 %target to ptr
  AT %coming total stream bytes
  %stream.total = load atomic i64, ptr %coming.total monotonic, align 8
  %stream = load i64, ptr %coming.stream, align 8
  %stream.bytes = load i64, ptr %coming.bytes, align 8
  %stream.tasks = and i64 %stream.total, 4294967295
  %stream.some = call i64 @llvm.umax.i64(i64 %stream.tasks, i64 1)
  %task.bytes = udiv i64 %stream.bytes, %stream.some
  %stream.share = call i64 @lutra_share(i64 %stream.tasks, i64 %threads)
  %share.bytes = mul i64 %stream.share, %task.bytes
  %skip = mul i64 %index, %share.bytes
  %cursor.first = add i64 %stream, %skip
  %length = call i64 @llvm.umin.i64(i64 %share.bytes, i64 AHEAD_BYTES)
  %limit.new = add i64 %cursor.first, %length
  store i64 %cursor.first, ptr %cursor.var, align 8
  store i64 %limit.new, ptr %limit.var, align 8
  br label %aimed
aimed:
  br label %wait
ahead:
  %cursor = load i64, ptr %cursor.var, align 8
  %limit = load i64, ptr %limit.var, align 8
  %is.short = icmp ult i64 %cursor, %limit
  br i1 %is.short, label %ask, label %patience
ask:
  %line = inttoptr i64 %cursor to ptr
  %line1 = getelementptr i8, ptr %line, i64 64
  %line2 = getelementptr i8, ptr %line, i64 128
  %line3 = getelementptr i8, ptr %line, i64 192
  call void @llvm.prefetch.p0(ptr %line, i32 0, i32 2, i32 1)
  call void @llvm.prefetch.p0(ptr %line1, i32 0, i32 2, i32 1)
  call void @llvm.prefetch.p0(ptr %line2, i32 0, i32 2, i32 1)
  call void @llvm.prefetch.p0(ptr %line3, i32 0, i32 2, i32 1)
  %cursor.next = add i64 %cursor, 256
  store i64 %cursor.next, ptr %cursor.var, align 8
  br label %wait
patience:
  %turn.next = add i64 %turn, 1
  %long = icmp ugt i64 %turn.next, PATIENCE
  br i1 %long, label %give, label %breathe
give:
  %ignored = call i32 %yield()
  br label %again
breathe:
  PAUSE
  br label %again
again:
  br label %wait
finished:
  %i.next = add i64 %i, 1
  br label %launch
out:
  ret void
}

define void @lutra_run(ptr %control, ptr %program, i64 %rows) #0 {
entry:
  AT %control epochs
  %epochs = load ptr, ptr %control.epochs, align 8
  %epoch.old = atomicrmw add ptr %epochs, i32 1 monotonic, align 8
  %epoch32 = add i32 %epoch.old, 1
  %epoch = zext i32 %epoch32 to i64
  %tag = shl i64 %epoch, 32
  %launches = load i64, ptr %program, align 8
  br label %reset
reset:
  %i = phi i64 [ 0, %entry ], [ %i.next, %write ]
  %more = icmp slt i64 %i, %launches
  br i1 %more, label %size, label %start
size:
  %record = call ptr @lutra_record(ptr %program, i64 %i)
  AT %record tasks rows total next taken done
  %tasks = load i64, ptr %record.tasks, align 8
  %block = load i64, ptr %record.rows, align 8
  %fixed = icmp eq i64 %block, 0
  br i1 %fixed, label %write, label %scale
scale:
  %up = add i64 %rows, %block
  %up1 = sub i64 %up, 1
  %blocks = udiv i64 %up1, %block
  %scaled = mul i64 %blocks, %tasks
  br label %write
write:
  %count = phi i64 [ %tasks, %size ], [ %scaled, %scale ]
  %total = or i64 %tag, %count
  store atomic i64 %total, ptr %record.total release, align 8
  store atomic i64 %tag, ptr %record.done release, align 8
  store atomic i64 %tag, ptr %record.next release, align 8
  store atomic i64 %tag, ptr %record.taken release, align 8
  %i.next = add i64 %i, 1
  br label %reset
start:
  AT %control program sleepers
  store atomic ptr %program, ptr %control.program release, align 8
  store atomic i32 %epoch32, ptr %control seq_cst, align 64
  %sleepers = load atomic i64, ptr %control.sleepers seq_cst, align 8
  %asleep = icmp ne i64 %sleepers, 0
  br i1 %asleep, label %wake, label %work
wake:
  call void @lutra_wake(ptr %control)
  br label %work
work:
  %floats = call i64 @lutra_floats(i64 USUAL_FLOATS)
  call void @lutra_participate(ptr %control, i64 %epoch, ptr %program, i64 0)
  %usual = call i64 @lutra_floats(i64 %floats)
  ret void
}

define void @lutra_stop(ptr %control) #0 {
  AT %control stop
  store atomic i64 1, ptr %control.stop release, align 8
  %old = atomicrmw add ptr %control, i32 1 seq_cst, align 64
  call void @lutra_wake(ptr %control)
  ret void
}

define void @lutra_wake(ptr %control) #0 {
  AT %control syscall number
  %syscall = load ptr, ptr %control.syscall, align 8
  %none = icmp eq ptr %syscall, null
  br i1 %none, label %out, label %call
call:
  %number = load i64, ptr %control.number, align 8
  %r = call i64 (i64, ...) %syscall(i64 %number, ptr %control, i64 129, i64 2147483647, i64 0, i64 0, i64 0)
  br label %out
out:
  ret void
}

define void @lutra_worker(ptr %control, i64 %index) #0 {
entry:
  AT %control stop program sleepers spins syscall yield number
  %spins = load i64, ptr %control.spins, align 8
  %syscall = load ptr, ptr %control.syscall, align 8
  %yield = load ptr, ptr %control.yield, align 8
  %number = load i64, ptr %control.number, align 8
  %floats = call i64 @lutra_floats(i64 USUAL_FLOATS)
  br label %idle
idle:
  %last = phi i32 [ 0, %entry ], [ %now, %work ], [ %last.w, %napped ]
  br label %look
look:
  %turn = phi i64 [ 0, %idle ], [ %turn.next, %breathe ]
  %now = load atomic i32, ptr %control acquire, align 64
  %fresh = icmp ne i32 %now, %last
  br i1 %fresh, label %go, label %rest
rest:
  %turn.next = add i64 %turn, 1
  %long = icmp ugt i64 %turn.next, %spins
  br i1 %long, label %nap, label %breathe
breathe:
  PAUSE
  br label %look
nap:
  %last.w = phi i32 [ %last, %rest ]
  %none = icmp eq ptr %syscall, null
  br i1 %none, label %yielding, label %sleep
yielding:
  %ignored = call i32 %yield()
  br label %napped
sleep:
  %a = atomicrmw add ptr %control.sleepers, i64 1 seq_cst, align 8
  %r = call i64 (i64, ...) %syscall(i64 %number, ptr %control, i64 128, i32 %last.w, i64 0, i64 0, i64 0)
  %b = atomicrmw sub ptr %control.sleepers, i64 1 seq_cst, align 8
  br label %napped
napped:
  br label %idle
go:
  %stop = load atomic i64, ptr %control.stop acquire, align 8
  %stopping = icmp ne i64 %stop, 0
  br i1 %stopping, label %out, label %work
work:
  %program = load atomic ptr, ptr %control.program acquire, align 8
  %epoch = zext i32 %now to i64
  call void @lutra_participate(ptr %control, i64 %epoch, ptr %program, i64 %index)
  br label %idle
out:
  ret void
}

attributes #0 = { nounwind }

declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.umax.i64(i64, i64)
declare i64 @llvm.cttz.i64(i64, i1)
"""

# The hint to a CPU that it is spinning: intrinsic, argument type, argument.  On ARM `yield` does nothing on most cores;
# the instruction barrier waits some tens of cycles, as x86's pause does.
_PAUSE = {"x86_64": ("llvm.x86.sse2.pause", "", ""), "aarch64": ("llvm.aarch64.isb", "i32", "15")}


# lutra_floats(state) sets the float state of the thread that calls it and returns the one before; and the usual state.
# x86: MXCSR with all six traps masked; ARM: FPCR.
_FLOATS = {
    "x86_64": (0x1F80, """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define i64 @lutra_floats(i64 %state) #0 {
  %word = alloca i32, align 4
  call void @llvm.x86.sse.stmxcsr(ptr %word)
  %old = load i32, ptr %word, align 4
  %new = trunc i64 %state to i32
  store i32 %new, ptr %word, align 4
  call void @llvm.x86.sse.ldmxcsr(ptr %word)
  %before = zext i32 %old to i64
  ret i64 %before
}
"""),
    "aarch64": (0, """
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
define i64 @lutra_floats(i64 %state) #0 {
  %before = call i64 @llvm.aarch64.get.fpcr()
  call void @llvm.aarch64.set.fpcr(i64 %state)
  ret i64 %before
}
"""),
}  # fmt: skip
_NO_FLOATS = (0, "define i64 @lutra_floats(i64 %state) #0 {\n  ret i64 %state\n}\n")


def _addresses(found: re.Match[str]) -> str:
    """The lines that an AT line stands for."""
    block, names = found[1], found[2].split()
    places = CONTROL if block == "control" else RECORD
    return "".join(f"  %{block}.{name} = getelementptr i64, ptr %{block}, i64 {places[name]}\n" for name in names)


def text(machine: str) -> str:
    """The LLVM text of the functions above for an architecture."""
    usual, floats = _FLOATS.get(machine, _NO_FLOATS)
    numbers = {"AHEAD_BYTES": AHEAD_BYTES, "PATIENCE": PATIENCE, "USUAL_FLOATS": usual,
               "RECORD_WORDS": LINES * LINE, "LINE_WORDS": LINE}  # fmt: skip
    body = _TEXT + floats
    for word, number in numbers.items():
        body = body.replace(word, str(number))
    body = re.sub(r"  AT %(\w+) (.*)\n", _addresses, body)
    if machine not in _PAUSE:
        return body.replace("PAUSE", "fence seq_cst")
    intrinsic, kind, argument = _PAUSE[machine]
    call = f"call void @{intrinsic}({kind} {argument})"
    return f"declare void @{intrinsic}({kind})\n{body.replace('PAUSE', call)}"
