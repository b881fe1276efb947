import type { RecordHeader } from '../../record/batch-builder.ts'

/** What the last header of that name says, one letter a byte; undefined: there is none, or it is null. */
export function findHeaderText(headers: readonly RecordHeader[], name: string): string | undefined {
  const value = headers.findLast(({ key }) => key === name)?.value
  return value === undefined
    ? undefined
    : Buffer.from(value.buffer, value.byteOffset, value.length).toString('latin1')
}
