/**
 * When an append is answered: never; when the write call has returned in full; when `fdatasync` of the data, and of the
 * directory for a new file, has succeeded (CONTRACT §2.1).
 */
export type Acks = 'none' | 'written' | 'durable'
