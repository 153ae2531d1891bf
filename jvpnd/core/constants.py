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
AUDIT_PER_S = 10  # security events a second: a flood must not become a flood of events
MAX_TOMBSTONES = 1_024

# Detection
ACTIVE_CHECK_MS = 10  # how often the counters are looked at while traffic flows
IDLE_CHECK_MS = 100
ACTIVE_FOR_MS = 1_000  # traffic within this time makes the path a busy one
BURST_GAP_MS = 15  # between probes while the bound path is suspect
BURST_LIMIT = 12  # then suspicion goes on at the busy heartbeat
BURST_DEAD = 4  # burst probes unanswered, while a candidate answers, are a death
ONE_WAY_DEAD = 15  # probes unanswered in a row, however much is heard, are one too
LATE_SHELL_MS = 20  # a timer later than this tells of a stalled host, not of a silent path

# Recovery
FRESH_MS = 2_500  # a candidate heard or added within this time is worth early data
REATTACH_RTO_MAX_MS = 1_000
PLANNED_ATTEMPTS = 3  # on the target of a planned switch, before the old binding is kept
DEGRADED_RETRY_MS = 2_000
HINT_GAP_MS = 20

# Gateway
SCAN_MS = 250  # between looks at all sessions' health
