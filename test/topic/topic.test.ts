import { assert, property, stringMatching } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { checkGroupId } from '../../src/common/names.ts'
import { homeGroupOf } from '../../src/topic/topic.ts'
import { resolveConfig, type TopicOverrides } from '../../src/topic/topic-config.ts'

function homeOf(name: string, overrides: TopicOverrides = {}): string | undefined {
  return homeGroupOf({ name, config: resolveConfig({ jobsEnable: true, ...overrides }) })
}

describe('homeGroupOf', () => {
  it('is none where jobs are off', () => {
    expect(homeOf('emails', { jobsEnable: false, jobsGroup: 'painters' })).toBeUndefined()
  })

  it('is named after the topic, unless it has a name', () => {
    expect(homeOf('emails')).toBe('emails.workers')
    expect(homeOf('emails', { jobsGroup: 'painters' })).toBe('painters')
  })

  it('is a valid group id for every topic, and another one for each', () => {
    const names = stringMatching(/^[a-z][A-Za-z0-9._-]{230,248}$/)
    assert(
      property(names, names, (a, b) => {
        expect(() => checkGroupId(homeOf(a) ?? '')).not.toThrow()
        expect(homeOf(a) === homeOf(b)).toBe(a === b)
      }),
    )
    const [a, b] = ['x', 'y'].map((end) => homeOf(`${'t'.repeat(248)}${end}`))
    expect(a).not.toBe(b)
    expect(a).toHaveLength(249)
  })
})
