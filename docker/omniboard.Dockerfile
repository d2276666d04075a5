# Omniboard, which shows MongoDB's runs in the browser; docker/compose.yaml builds it.
ARG BASE=node:20.20.2-bookworm-slim
FROM ${BASE}
# The date pins what it depends on, of which its package leaves the versions open.
RUN npm install --global --ignore-scripts --no-audit --no-fund --before=2026-11-01 omniboard@2.16.1 \
    && npm cache clean --force
USER 1000:1000
EXPOSE 9000
CMD ["omniboard"]
