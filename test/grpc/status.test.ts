import { status as GrpcStatus } from '@grpc/grpc-js'
import { describe, expect, it } from 'vitest'
import { BrokerError, ERROR_TABLE, type ErrorCode } from '../../src/common/errors.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { ErrorMapper, STATUS_NUMBERS } from '../../src/grpc/status.ts'
import { decodeErrorDetail, ERROR_TRAILER } from '../../src/wire/error-detail.ts'

interface Line {
  readonly level: string
  readonly facts: Readonly<Record<string, unknown>>
}

function aMapper(): { errors: ErrorMapper; lines: Line[] } {
  const lines: Line[] = []
  const at = (level: string) => (facts: Readonly<Record<string, unknown>>) => {
    lines.push({ level, facts })
  }
  const logger = { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') }
  return { errors: new ErrorMapper(logger, new SeededRandom(1)), lines }
}

describe('an error on its way to the client', () => {
  it.each(Object.keys(ERROR_TABLE) as ErrorCode[])('%s has the status of the table', (code) => {
    const { errors } = aMapper()
    const { code: number, metadata } = errors.toStatus(new BrokerError(code, 'x'), 'Append')
    expect(number).toBe(STATUS_NUMBERS[ERROR_TABLE[code].status])
    expect(GrpcStatus[number]).toBe(ERROR_TABLE[code].status)
    const detail = decodeErrorDetail(metadata.get(ERROR_TRAILER)[0] as Buffer)
    expect(detail.reason).toBe(code)
    if (detail.action === 'retry_after') expect(detail.retryAfterMs).toBeGreaterThan(0)
  })

  it('says nothing of where things lie', () => {
    const { errors, lines } = aMapper()
    const cause = new Error('EIO: i/o error, read /srv/data/orders-0/00000000000000000000.log')
    const error = new BrokerError(
      'STORAGE_ERROR',
      'cannot read /srv/data/orders-0/00000000000000000000.log: EIO',
      { topic: 'orders', file: '/srv/data/orders-0/00000000000000000000.log' },
      cause,
    )
    const detail = errors.toDetail(error, 'Fetch')
    expect(JSON.stringify(detail)).not.toContain('/srv')
    expect(detail.message).toBe('cannot read 00000000000000000000.log: EIO')
    expect(detail.facts).toEqual([{ name: 'topic', value: 'orders' }])
    expect(lines[0]?.facts['traceId']).toBe(detail.traceId)
  })

  it('is logged by whose fault it is', () => {
    const { errors, lines } = aMapper()
    for (const code of ['UNKNOWN_TOPIC', 'BROKER_DRAINING', 'STORAGE_ERROR'] as const) {
      errors.toDetail(new BrokerError(code, 'x'), 'Append')
    }
    errors.toDetail(new TypeError('x is undefined'), 'Append')
    expect(lines.map((line) => line.level)).toEqual(['debug', 'info', 'error', 'error'])
  })

  it('fits into a trailer, whatever somebody called a topic', () => {
    const { errors } = aMapper()
    const long = '\ud800'.repeat(5000)
    const { metadata, details } = errors.toStatus(
      new BrokerError('INVALID_TOPIC_NAME', long, { topic: long }),
      'CreateTopic',
    )
    expect(() => encodeURI(details)).not.toThrow()
    expect((metadata.get(ERROR_TRAILER)[0] as Buffer).length).toBeLessThan(6000)
  })
})
