import { defineConfig } from 'vitest/config'
import type { ViteUserConfig } from 'vitest/config'

/**
 * `unit` is the inner loop: everything that needs no built server. `e2e` starts real processes from dist/,
 * so `npm test` builds first. `crash` is the long simulated part; CRASH_POINTS sets how much of it.
 */
const config: ViteUserConfig = defineConfig({
  test: {
    testTimeout: 30_000,
    hookTimeout: 30_000,
    maxWorkers: 2,
    env: { MILLRACE_DEBUG: '1' },
    projects: [
      {
        extends: true,
        test: {
          name: 'unit',
          include: ['test/**/*.test.ts'],
          exclude: ['test/e2e/**', 'test/crash/**'],
        },
      },
      {
        extends: true,
        test: { name: 'crash', include: ['test/crash/**/*.test.ts'], testTimeout: 600_000 },
      },
      {
        extends: true,
        test: {
          name: 'e2e',
          include: ['test/e2e/**/*.test.ts'],
          testTimeout: 120_000,
          hookTimeout: 60_000,
        },
      },
    ],
  },
})

export default config
