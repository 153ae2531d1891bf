"""Every fixed number of the protocol's behaviour. What an operator may tune is in policy.py."""

# Handshake
HANDSHAKE_TIMEOUT_MS = 5_000  # then the birth has failed
HANDSHAKE_RTO_MAX_MS = 1_000
BIRTH_BACKOFF_MS = 1_000  # between failed births, doubled up to the maximum
BIRTH_BACKOFF_MAX_MS = 30_000
MAX_PENDING_INITS = 4  # answers to earlier INITs are still good on slow paths
REKEY_RETRY_MS = 1_000

# Flood limits of the gateway
SOURCE_RATE_PER_S = 20  # INIT and REATTACH_REQUEST, per source prefix
SOURCE_BURST = 40
SOURCE_TABLE_SIZE = 4_096
COOKIE_LOAD_PER_S = 50  # key exchanges a second above which a cookie is demanded
PROBE_RATE_PER_S = 200  # answered for one session: far more than an honest client asks
PROBE_BURST = 400
AUDIT_PER_S = 10  # security events a second: a flood must not become a flood of events
MAX_TOMBSTONES = 1_024

# Detection
ACTIVE_CHECK_MS = 10  # how often the counters are looked at while traffic flows
IDLE_CHECK_MS = 100
ACTIVE_FOR_MS = 1_000  # traffic within this time makes the path a busy one
BURST_GAP_MS = 15  # between probes while the bound path is suspect
BURST_LIMIT = 12  # then suspicion goes on at the busy heartbeat
BURST_DEAD = 4  # burst probes unanswered, while a candidate answers, are a death
ONE_WAY_DEAD = 12  # probes unanswered in a row, however much is heard, are one too
RTT_STEP_MS = 200  # a path may become slower by so much at once: no death before that
STREAM_STEP_MS = 400  # on a stream a lost segment holds up all: the kernel's RTO is 200 ms or more
CONTINUOUS_MS = 20  # sent so soon after the last packet heard: others were under way already
LATE_SHELL_MS = 20  # a timer later than this tells of a stalled host, not of a silent path

# Quality
LOOK_SAMPLE_MS = 5  # losses of so short a time count as one
REORDER_MS = 30  # what is missing for so long is lost; before it may be late
DOUBT_PROBES = 12  # to each candidate, while the bound path is on its way below the floor
DOUBT_GAP_MS = 10  # between two pairs of them
EVIDENCE_MS = 1_000  # probes of this time tell whether a path is worth a move by choice:
MIN_EVIDENCE = 7  # so many answered, and for each that was not
MORE_EVIDENCE = 2  # so many more
TRIAL_PROBES = 10  # at the busy heartbeat, before a move to a preferred uplink
FRESH_BEATS = 2.5  # a candidate heard or added within so many heartbeats is worth early data
CHOICE_GAP_MS = 1_000  # between moves that nobody is forced to make
FLAP_MEMORY_MS = 600_000  # each death in this time doubles the wait for a move back
FLAP_DOUBLINGS = 5
MAX_PATHS = 64

# Recovery
REATTACH_RTO_MAX_MS = 1_000
TAKEOVER_MS = 200  # another node asks the shared table twice before it answers
PLANNED_ATTEMPTS = 3  # on the target of a planned switch, before the old binding is kept
DEGRADED_RETRY_MS = 2_000
HINT_GAP_MS = 20

# Gateway
REBINDS_PER_MINUTE = 120  # of a session, those included that its client never confirmed
STORE_RETRY_MS = 1_000  # of a rekey that the session table refused
STORE_TRIES = 3  # of a write that the shared table refuses, each after a look at what it holds
MAX_VISITS = 1_024  # sessions of other nodes that are being looked up
MOVE_AGAIN_MS = 1_000  # between two requests to a client to go to another node
MOVES_AT_ONCE = 48  # clients that are asked so, until some of them have gone
SCAN_MS = 250  # a round of looks at all sessions' health
SCAN_SLICE = 256  # so many of them at once,
SCAN_ENDS = 32  # of which so many may end
TELL_SLICE = 20  # clients told of a restart at once, and how long until the next are:
TELL_GAP_MS = 10  # all at once would ask for new bindings at once
