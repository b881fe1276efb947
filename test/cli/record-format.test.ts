import { assert, property, string } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { aRecordWith, written } from './support.ts'
import { compileFormat, compileFormatString, escapeControls } from '../../src/cli/record-format.ts'
import type { FormatOptions } from '../../src/cli/record-format.ts'
import { UsageError } from '../../src/cli/usage-error.ts'

const plain: FormatOptions = { delimiter: 0x0a, metaOnly: false, colour: false, columns: undefined }
const TIME_MS = Date.UTC(2026, 1, 3, 4, 5, 6, 78)

const record = aRecordWith({
  key: 'k1',
  value: '{"a":1}',
  timestampMs: TIME_MS,
  headers: [
    { key: 'x', value: Buffer.from('1') },
    { key: 'y', value: Buffer.from('2') },
  ],
})

async function formatted(format: string, of = record): Promise<string> {
  return (await written(compileFormatString(format), of)).toString('latin1')
}

describe('a format string', () => {
  it.each([
    ['%t/%p %o %k %v\\n', 'orders/3 0 k1 {"a":1}\n'],
    ['%s', '{"a":1}'],
    ['%K %V %S %H', '2 7 7 2'],
    ['%%%%', '%%'],
    ['\\x1e\\t\\r\\0\\\\', '\u001e\t\r\0\\'],
    ['%k{hex} %k{base64} %k{json}', '6b31 azE= "k1"'],
    ['%v{json} %v{text}', '{"a":1} {"a":1}'],
    ['%d %d{ms} %T', `${TIME_MS} ${TIME_MS} ${TIME_MS}`],
    ['%d{unix} %d{iso}', `${Math.floor(TIME_MS / 1000)} 2026-02-03T04:05:06.078Z`],
    ['%d{strftime:%F %T.%L %j %a %b %y %e%%}', '2026-02-03 04:05:06.078 034 Tue Feb 26  3%'],
    ['%h', 'x=1,y=2'],
    ['%h{%k{hex}=%v;%%}', '78=1;%79=2;%'],
    ['%o{hex}', '0{hex}'],
    ['é%o', 'Ã©0'],
  ])('%s gives %s', async (format, expected) => {
    expect(await formatted(format)).toBe(expected)
  })

  it.each([
    ['%q', 'no %q'],
    ['%v{hxe}', 'no {hxe}'],
    ['%d{iso8601}', 'no %d{iso8601}'],
    ['%d{strftime:%Q}', 'no %Q'],
    ['%', 'bare %'],
    ['\\q', 'no \\q'],
    ['\\x1', 'no byte'],
    ['%v{hex', 'never closed'],
    ['%h{%o}', 'inside %h{…}'],
  ])('refuses %s and says where', (format, why) => {
    expect(() => compileFormatString(format)).toThrow(why)
    expect(() => compileFormatString(format)).toThrow(UsageError)
  })

  it('gives nothing for an absent key and a tombstone, -1 for their lengths, null as JSON', async () => {
    const bare = aRecordWith({ value: null })
    expect(await formatted('[%k][%v][%K][%V][%v{json}][%h]', bare)).toBe('[][][-1][-1][null][]')
  })

  it('gives bytes as they are, also those that are no text', async () => {
    const binary = aRecordWith({ value: Uint8Array.of(0xff, 0x00, 0x0a) })
    expect(await formatted('%v', binary)).toBe('\u00ff\u0000\n')
    expect(await formatted('%v{json}', binary)).toBe('"/wAK"')
  })

  it('ends each record with NUL when asked to', async () => {
    const bytes = await written(compileFormatString('%o', 0), record)
    expect(bytes.toString()).toBe('0\0')
  })
})

describe('a named format', () => {
  it('raw is the value and a newline, and an empty line for a tombstone', async () => {
    const { write } = compileFormat('raw', plain)
    expect((await written(write, record)).toString()).toBe('{"a":1}\n')
    expect((await written(write, aRecordWith({ value: null }))).toString()).toBe('\n')
  })

  it('pretty is one line in which no control character is left', async () => {
    const { write } = compileFormat('pretty', plain)
    const evil = aRecordWith({ key: '\u001b[31m', value: 'a\nb\u009b\u202e' })
    expect((await written(write, evil)).toString()).toBe(
      '2026-01-01T00:00:00.000Z  orders/3:0  \\x1b[31m  a\\nb\\x9b\\u202e\n',
    )
  })

  it('table has a heading and cuts values to the width of the terminal', async () => {
    const format = compileFormat('table', { ...plain, columns: 100 })
    expect(format.heading).toMatch(/^PLACE +TIME +KEY +VALUE$/)
    const wide = (await written(format.write, aRecordWith({ value: 'x'.repeat(500) }))).toString()
    expect(wide.length).toBeLessThanOrEqual(101)
    expect(wide).toContain('…')
  })

  it('says what is near a name that is none, and refuses text without a verb', () => {
    expect(() => compileFormat('jsn', plain)).toThrow('"jsn" is no format')
    try {
      compileFormat('jsn', plain)
    } catch (error) {
      expect((error as UsageError).hint).toContain('did you mean json')
    }
  })

  it.each(['raw', '%v'])('does not take --meta-only with %s', (name) => {
    expect(() => compileFormat(name, { ...plain, metaOnly: true })).toThrow('--meta-only')
  })
})

describe('text for a terminal', () => {
  it('never has a control character', () => {
    assert(
      property(string({ unit: 'binary' }), (text) => {
        // oxlint-disable-next-line no-control-regex
        expect(escapeControls(text)).not.toMatch(/[\u0000-\u001f\u007f-\u009f]/)
      }),
    )
  })
})
