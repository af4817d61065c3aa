{{/* Labels of all objects. */}}
{{- define "sluice.labels" -}}
app.kubernetes.io/part-of: sluice
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The image: by digest where there is one, else by tag. */}}
{{- define "sluice.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Not empty if the API server knows the field `appArmorProfile`; older ones refuse it and know an annotation. */}}
{{- define "sluice.knowsAppArmor" -}}
{{- if semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version -}}yes{{- end -}}
{{- end }}

{{/* A setting as the agent reads it: Helm reads numbers as floats, and would write large ones with an exponent. */}}
{{- define "sluice.setting" -}}
{{- if kindIs "float64" . -}}
{{- if eq . (floor .) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- else -}}
{{ toString . }}
{{- end -}}
{{- end }}

{{/* Seconds that a stopping agent has: longer than it drains, or what is in flight would be cut. */}}
{{- define "sluice.gracePeriod" -}}
{{- $grace := int .Values.terminationGracePeriodSeconds -}}
{{- $drain := 30 -}}
{{- with toString (.Values.config.SLUICE_DRAIN_TIMEOUT | default "") -}}
{{- $drain = int . -}}
{{- end -}}
{{- if eq (toString .Values.config.SLUICE_DRAIN_TIMEOUT) "0" -}}
{{- $drain = 0 -}}
{{- end -}}
{{- if lt $grace (add $drain 5 | int) -}}
{{- fail (printf "terminationGracePeriodSeconds is %d: it must be at least 5 more than config.SLUICE_DRAIN_TIMEOUT, which is %d" $grace $drain) -}}
{{- end -}}
{{ $grace }}
{{- end }}

{{/* The port at the node's address, which Prometheus scrapes. */}}
{{- define "sluice.metricsPort" -}}
{{- $node := regexFind "node:[0-9]+" (toString .Values.config.SLUICE_ADMIN) -}}
{{- if not $node -}}
{{- fail "podMonitor.enabled: the agents listen at no port of their node: config.SLUICE_ADMIN needs `node:PORT`" -}}
{{- end -}}
{{ trimPrefix "node:" $node }}
{{- end }}
