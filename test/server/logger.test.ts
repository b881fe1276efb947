import { PassThrough } from 'node:stream'
import { describe, expect, it } from 'vitest'
import { escapeControls, formatLogLine, makeLogger } from '../../src/server/logger.ts'
import type { LogFormat } from '../../src/server/config.ts'

function written(
  format: LogFormat,
  isTTY: boolean,
  log: (logger: ReturnType<typeof makeLogger>) => void,
): string {
  const stream = Object.assign(new PassThrough(), { isTTY })
  log(makeLogger({ level: 'info', format, stream }))
  return String(stream.read() ?? '')
}

describe('the log', () => {
  it('is a JSON line per entry', () => {
    const line = written('auto', false, (logger) => logger.warn({ topic: 'orders' }, 'careful'))
    expect(JSON.parse(line)).toMatchObject({ level: 'warn', topic: 'orders', message: 'careful' })
    expect(line.endsWith('}\n')).toBe(true)
  })

  it('is text on a terminal', () => {
    const line = written('auto', true, (logger) => logger.info({ topic: 'orders' }, 'ready'))
    expect(line).toContain('INFO')
    expect(line).toContain('ready')
    expect(line).toContain('orders')
    expect(line).not.toContain('{')
  })

  it('keeps below its level quiet', () => {
    expect(written('json', false, (logger) => logger.debug({}, 'x'))).toBe('')
  })

  it('writes errors with what they were', () => {
    const line = written('json', false, (logger) => logger.error({ error: new Error('boom') }, 'x'))
    expect(JSON.parse(line)).toMatchObject({ error: { message: 'boom', type: 'Error' } })
  })

  it.each(['json', 'pretty'] as const)(
    'lets nobody forge a line or colour the screen (%s)',
    (format) => {
      const evil = 'a\nERROR forged\u001b[2J\r\u009b1m'
      const text = written(format, false, (logger) => logger.info({ topic: evil, [evil]: 1 }, evil))
      expect(text.split('\n')).toHaveLength(2)
      // eslint-disable-next-line no-control-regex -- they are what must not be there
      expect(text.slice(0, -1)).not.toMatch(/[\u0000-\u001f]/)
    },
  )

  it('leaves a line that is no JSON as it is, but for controls', () => {
    expect(formatLogLine('hello \u0007', false)).toBe('hello \\x07')
    expect(escapeControls('\u2028é')).toBe('\\u2028é')
  })
})
