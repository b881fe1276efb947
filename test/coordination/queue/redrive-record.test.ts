import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../../src/common/errors.ts'
import { toOffset } from '../../../src/common/offset.ts'
import {
  decodeRedrive,
  encodeRedrive,
  type RedriveRecord,
  toTaskInfo,
} from '../../../src/coordination/queue/redrive-record.ts'
import { ALL } from '../../support/redrive-bench.ts'

const RECORD: RedriveRecord = {
  taskId: 'redrive-0000002a',
  topic: 'dlq.workers.orders',
  topicId: '0b0e7a52-3c1d-4f7a-9a64-1d2e3f405161',
  toTopic: '',
  toTopicId: '',
  filter: { ...ALL, reason: 'rejected', headers: [{ key: 'a', value: Buffer.from([0, 255]) }] },
  maxPerSec: 100,
  resetAttempts: false,
  startedMs: 1000,
  total: 500,
  ends: [400, 100],
  state: 'running',
  moved: 3,
  left: 2,
  leftWhy: '0/1 is no dead letter',
  at: { partition: 1, offset: 17 },
  pending: [
    {
      mark: {
        topic: '__retry.workers.orders',
        topicId: '9f0e7a52-3c1d-4f7a-9a64-1d2e3f405161',
        partition: 0,
        end: toOffset(12),
      },
      letters: [
        { partition: 1, offset: 17 },
        { partition: 1, offset: 19 },
      ],
    },
  ],
  endedMs: 0,
  error: '',
}

function codeOf(text: string): string {
  try {
    decodeRedrive(text)
  } catch (error) {
    if (error instanceof BrokerError) return error.code
    throw error
  }
  return 'none'
}

describe('the record of a redrive', () => {
  it('reads back as it was written', () => {
    expect(decodeRedrive(encodeRedrive(RECORD))).toEqual(RECORD)
    const ended: RedriveRecord = { ...RECORD, state: 'failed', pending: [], error: 'X: y' }
    expect(decodeRedrive(encodeRedrive(ended))).toEqual(ended)
  })

  it('is refused when it is damaged, and when a newer millrace wrote it', () => {
    const json = JSON.parse(encodeRedrive(RECORD)) as Record<string, unknown>
    expect(codeOf('{')).toBe('INVALID_RECORD')
    expect(codeOf('[]')).toBe('INVALID_RECORD')
    for (const name of Object.keys(json)) {
      if (name === 'resetAttempts') continue
      const code = codeOf(JSON.stringify({ ...json, [name]: null }))
      expect([name, code]).toEqual([name, name === 'filter' ? 'INVALID_FILTER' : 'INVALID_RECORD'])
    }
    expect(codeOf(JSON.stringify({ ...json, state: 'asleep' }))).toBe('INVALID_RECORD')
    expect(codeOf(JSON.stringify({ ...json, v: 2 }))).toBe('UNSUPPORTED_FORMAT')
  })

  it('tells people why it failed and what it has left', () => {
    expect(toTaskInfo({ ...RECORD, left: 0, leftWhy: '' }).error).toBe('')
    expect(toTaskInfo(RECORD).error).toBe(
      '2 letters stay where they are; the first: 0/1 is no dead letter',
    )
    expect(toTaskInfo({ ...RECORD, left: 1, state: 'failed', error: 'READ_ONLY: no' }).error).toBe(
      'READ_ONLY: no; 1 letter stays where it is; the first: 0/1 is no dead letter',
    )
  })
})
