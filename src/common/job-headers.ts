/**
 * Headers with a meaning to queues (SEMANTICS §3.1). Values are UTF-8 text. A plain reader sees them like any other; numbers are decimal.
 * Those of dead letters begin with `dlq.` and are named in coordination/queue/dead-letter-record.ts.
 */
export const JOB_TYPE_HEADER = 'job.type'
/** What `order=key` goes by; without it the record's key. At most 256 bytes. */
export const ORDERING_KEY_HEADER = 'job.ordering_key'
/** 1 to 1000: the record's own limit, never above that of the group. */
export const ATTEMPTS_HEADER = 'job.attempts_max'
/** The record's own backoff: `fixed:5s`, `linear:500ms`, `exponential:1s`, `list:1s,5s,1m` or `none`. */
export const BACKOFF_HEADER = 'job.backoff'
/** At most 128 bytes. */
export const DEDUPE_ID_HEADER = 'job.dedupe_id'
/** Beside a dedupe id: when the broker took the record in, which is what the id's window is counted from. */
export const ACCEPTED_HEADER = 'job.accepted_ms'
/** Put there by the broker when a delayed record is appended: the identity that makes it one copy. */
export const DELAY_ID_HEADER = 'job.delay_id'
export const DELIVER_AT_HEADER = 'job.deliver_at_ms'

export const MOST_ORDERING_KEY_BYTES = 256
export const MOST_DEDUPE_ID_BYTES = 128
export const MOST_JOB_TYPE_BYTES = 128
