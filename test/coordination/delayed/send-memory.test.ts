import { describe, expect, it } from 'vitest'
import { toOffset } from '../../../src/common/offset.ts'
import { formatDelayId } from '../../../src/coordination/delayed/delay-record.ts'
import { SendMemory, type Sent } from '../../../src/coordination/delayed/send-memory.ts'

function anId(number: number): Uint8Array {
  const id = Buffer.alloc(16)
  id.writeUInt32BE(number, 12)
  return id
}

function anAnswer(number: number): Sent {
  const waits = number % 2 === 0
  return {
    error: undefined,
    partition: number % 3,
    offset: waits ? undefined : toOffset(number),
    delayId: waits ? formatDelayId(number % 4, number * 5, Buffer.alloc(12, number)) : '',
    deliverAtMs: waits ? 1e12 + number : 0,
    duplicate: false,
    timestampMs: 2e12 + number,
  }
}

describe('SendMemory', () => {
  it('remembers the last answers, whole, and forgets the oldest for good', () => {
    const memory = new SendMemory(100, new Uint8Array(16))
    for (let i = 0; i < 1000; i++) memory.remember('t', anId(i), anAnswer(i))
    for (let i = 0; i < 1000; i++) {
      expect([i, memory.find('t', anId(i))]).toEqual([i, i < 900 ? undefined : anAnswer(i)])
    }
    expect(memory.find('u', anId(999))).toBeUndefined()
  })

  it('keeps the newest answer of an id', () => {
    const memory = new SendMemory(100, new Uint8Array(16))
    memory.remember('t', anId(1), anAnswer(1))
    memory.remember('t', anId(1), anAnswer(2))
    expect(memory.find('t', anId(1))).toEqual(anAnswer(2))
  })
})
