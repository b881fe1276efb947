import { assert, asyncProperty, constantFrom, json, oneof, string, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { aRecord } from '../support/records.ts'
import { aRecordWith, written } from './support.ts'
import { decodeEnvelope, findMember, writeEnvelope } from '../../src/cli/envelope.ts'
import { BrokerError } from '../../src/common/errors.ts'

async function envelopeOf(shape: Parameters<typeof aRecordWith>[0]): Promise<string> {
  const bytes = await written((topic, partition, record, out) => {
    writeEnvelope(topic, partition, record, out, { metaOnly: false, delimiter: 0x0a })
  }, aRecordWith(shape))
  return bytes.toString('utf8')
}

function asText(bytes: Uint8Array | undefined): string | undefined {
  return bytes === undefined ? undefined : Buffer.from(bytes).toString('latin1')
}

describe('the envelope', () => {
  it('comes back to the same bytes, whatever the record holds', async () => {
    await assert(
      asyncProperty(aRecord(), async (record) => {
        const line = await envelopeOf({ ...record, value: record.value ?? null })
        expect(line.indexOf('\n')).toBe(line.length - 1)
        const read = decodeEnvelope(Buffer.from(line.trimEnd()))
        const bytesOf = (text: Uint8Array | string | undefined): string | undefined =>
          asText(typeof text === 'string' ? Buffer.from(text, 'utf8') : text)
        expect(asText(read.key)).toBe(bytesOf(record.key))
        expect(asText(read.value)).toBe(bytesOf(record.value))
        expect(read.timestampMs).toBe(record.timestampMs)
        expect(read.headers.map((header) => asText(header.value))).toEqual(
          record.headers.map((header) => asText(header.value)),
        )
      }),
    )
  })

  it('carries JSON, near JSON and anything else to the same bytes', async () => {
    const spaced = json().map((text) => JSON.stringify(JSON.parse(text), null, 2))
    const odd = constantFrom(
      'null',
      '"a"',
      ' 1',
      '1 ',
      '01',
      '-0',
      '1e400',
      'true',
      'truex',
      '{',
      '',
    )
    await assert(
      asyncProperty(oneof(json(), spaced, odd, string(), uint8Array()), async (value) => {
        const line = await envelopeOf({ value })
        expect(line.indexOf('\n')).toBe(line.length - 1)
        expect(() => {
          JSON.parse(line)
        }).not.toThrow()
        expect(asText(decodeEnvelope(Buffer.from(line)).value)).toBe(asText(Buffer.from(value)))
      }),
    )
  })

  it('keeps numbers that a double cannot hold, and the spelling of those that it can', async () => {
    const value = '{"id":12345678901234567890,"price":1.0}'
    const line = await envelopeOf({ value })
    expect(line).toContain(`"value":${value}`)
    expect(asText(decodeEnvelope(Buffer.from(line)).value)).toBe(value)
  })

  it('tells a tombstone from an empty value and from the text null', async () => {
    expect(await envelopeOf({ value: null })).toContain('"value":null')
    expect(await envelopeOf({ value: '' })).toContain('"value":""')
    expect(await envelopeOf({ value: 'null' })).toContain('"value":"null"')
  })

  it('tells no key from an empty key', async () => {
    expect(await envelopeOf({})).toContain('"key":null')
    expect(await envelopeOf({ key: '' })).toContain('"key":""')
  })

  it('writes what is no UTF-8 as base64, with a flag', async () => {
    const line = await envelopeOf({ key: Uint8Array.of(0xff), value: Uint8Array.of(0xfe, 0x00) })
    expect(line).toContain(
      '"key":"/w==","keyEncoding":"base64","value":"/gA=","valueEncoding":"base64"',
    )
  })

  it('has no headers when there are none, and all of them when there are', async () => {
    expect(await envelopeOf({})).not.toContain('headers')
    const headers = [
      { key: 'a', value: Buffer.from('1') },
      { key: 'a', value: Uint8Array.of(0xff) },
      { key: 'b', value: undefined },
    ]
    expect(await envelopeOf({ headers })).toContain(
      '"headers":[{"key":"a","value":"1"},{"key":"a","value":"/w==","encoding":"base64"},{"key":"b","value":null}]',
    )
  })

  it('shows only sizes with --meta-only', async () => {
    const bytes = await written(
      (topic, partition, record, out) => {
        writeEnvelope(topic, partition, record, out, { metaOnly: true, delimiter: 0x0a })
      },
      aRecordWith({ key: 'ab', value: null }),
    )
    expect(JSON.parse(bytes.toString())).toEqual({
      topic: 'orders',
      partition: 3,
      offset: 0,
      timestamp: 1_767_225_600_000,
      keyBytes: 2,
      valueBytes: null,
      headerCount: 0,
    })
  })
})

describe('reading an envelope', () => {
  it.each([
    ['', 'no JSON'],
    ['[]', 'no JSON object'],
    ['{}', 'no "value"'],
    ['{"value":1,"vlaue":2}', 'unknown field "vlaue"'],
    ['{"value":"x","valueEncoding":"hex"}', 'neither text nor base64'],
    ['{"value":"!!","valueEncoding":"base64"}', 'no base64'],
    ['{"value":{},"valueEncoding":"base64"}', 'is no string'],
    ['{"value":1,"key":2}', '"key" that is no string'],
    ['{"value":1,"headers":{}}', 'no list'],
    ['{"value":1,"headers":[{"value":"x"}]}', 'without a "key"'],
    ['{"value":1,"partition":-1}', '"partition"'],
    ['{"value":1,"timestamp":"now"}', '"timestamp"'],
  ])('refuses %s and says why', (line, why) => {
    expect(() => decodeEnvelope(Buffer.from(line))).toThrow(why)
    expect(() => decodeEnvelope(Buffer.from(line))).toThrow(BrokerError)
  })

  it('finds a member whatever stands around it', () => {
    const text = ' { "a" : "}{\\"" , "value" : [ {"value": 1}, "]" ] , "z":{"value":3},"n":-1.5e3}'
    expect(findMember(text, 'value')).toBe('[ {"value": 1}, "]" ]')
    expect(findMember(text, 'n')).toBe('-1.5e3')
    expect(findMember('{"value":1,"\\u0076alue":22}', 'value')).toBe('22')
    expect(findMember('{}', 'value')).toBe('')
  })
})
