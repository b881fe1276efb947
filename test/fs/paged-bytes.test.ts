import { PagedBytes } from '../../src/fs/paged-bytes.ts'
import * as fc from 'fast-check'
import { expect, it } from 'vitest'

it('agrees with plain buffers through any writes, cuts and copies', () => {
  const step = fc.record({
    kind: fc.constantFrom('write', 'write', 'truncate', 'clone'),
    which: fc.nat(3),
    position: fc.nat(20_000),
    length: fc.nat(10_000),
  })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const copies = [{ paged: new PagedBytes(), model: Buffer.alloc(0) }]
      steps.forEach(({ kind, which, position, length }, i) => {
        const copy = copies[which % copies.length]
        if (copy === undefined) return
        if (kind === 'clone') {
          copies.push({ paged: copy.paged.clone(), model: Buffer.from(copy.model) })
          return
        }
        const end = kind === 'truncate' ? position : length === 0 ? 0 : position + length
        const next = Buffer.alloc(kind === 'truncate' ? end : Math.max(copy.model.length, end))
        copy.model.copy(next)
        if (kind === 'truncate') {
          copy.paged.truncate(position)
        } else {
          const bytes = Buffer.alloc(length, i + 1)
          copy.paged.write(bytes, position)
          bytes.copy(next, position)
        }
        copy.model = next
      })
      for (const { paged, model } of copies) {
        expect(paged.size).toBe(model.length)
        expect(paged.toBuffer().equals(model)).toBe(true)
      }
    }),
  )
})

it('costs nothing for holes', () => {
  const bytes = new PagedBytes()
  bytes.truncate(100 * 2 ** 30)
  bytes.write(Buffer.from('end'), 100 * 2 ** 30 - 3)
  const into = Buffer.alloc(10)
  expect(bytes.clone().read(into, 100 * 2 ** 30 - 5)).toBe(5)
  expect(into.toString('latin1', 0, 5)).toBe('\0\0end')
})
