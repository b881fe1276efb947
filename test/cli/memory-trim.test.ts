import { beforeEach, expect, it } from 'vitest'
import { MemoryTrim, processMemory } from '../../src/cli/memory-trim.ts'
import { FakeClock } from '../support/fake-clock.ts'

const MIB = 1024 * 1024
let clock: FakeClock
let cpuMs: number
let heapMib: number
let collections: number
let trim: MemoryTrim

beforeEach(() => {
  clock = new FakeClock()
  cpuMs = 0
  heapMib = 30
  collections = 0
  trim = new MemoryTrim(clock, {
    cpuMs: () => cpuMs,
    heapBytes: () => heapMib * MIB,
    collect: () => {
      collections++
      heapMib = 35
    },
  })
  trim.start()
})

it('collects twice after a burst, when the process has come to rest', async () => {
  heapMib = 120
  cpuMs = 2000
  await clock.advance(3000)
  expect(collections).toBe(0)
  cpuMs += 100
  await clock.advance(3000)
  expect(collections).toBe(1)
  await clock.advance(60_000)
  expect(collections).toBe(2)
})

it('leaves a heap alone that has grown by little, and stops when it is told to', async () => {
  heapMib = 61
  await clock.advance(60_000)
  expect(collections).toBe(0)
  heapMib = 200
  trim.stop()
  await clock.advance(60_000)
  expect(collections).toBe(0)
})

it('can collect in this process', async () => {
  const memory = processMemory()
  const ref = new WeakRef({ large: true })
  // What was made in this turn is held until it is over.
  await new Promise((resolve) => {
    setImmediate(resolve)
  })
  memory.collect()
  expect(ref.deref()).toBeUndefined()
  expect(memory.heapBytes()).toBeGreaterThan(0)
  expect(memory.cpuMs()).toBeGreaterThan(0)
})
