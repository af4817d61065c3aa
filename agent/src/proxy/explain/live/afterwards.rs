//! What may still happen to a request that goes to an endpoint, and what answers one that does not.

use super::walk::{Stopped, Walk, made_up, shown};
use crate::{
    govern::{
        fallback,
        policy::{FallbackAction, Part},
        request::Request as _,
    },
    proxy::explain::{Outcome, Stage, Verdict, text},
};

impl Walk<'_> {
    /// What may still happen to it.
    pub(super) fn afterwards(&mut self) {
        let policy = self.governor().policy();
        let times = [
            ("request", policy.timeouts.request),
            ("backendRequest", policy.timeouts.backend_request),
            ("streamIdle", policy.timeouts.stream_idle),
            ("connect", policy.timeouts.connect),
        ];
        for (name, time) in times {
            if let Some(time) = time {
                let because = self.rule(&format!("timeouts.{name}"), Part::Timeouts);
                self.steps.say(Stage::Timeout, Verdict::Passes, format!("has {}", shown(time)), because);
            }
        }
        if let Some(retry) = &policy.retry {
            let method = self.came.method();
            let may = retry.methods.iter().any(|allowed| allowed.as_str().as_bytes() == method);
            let what = if may {
                format!("may be retried up to {} times, within the budget", retry.attempts)
            } else {
                format!("{} is not retried", text(method))
            };
            let because = self.rule("retry", Part::Retry);
            self.steps.say(Stage::Retry, Verdict::Passes, what, because);
        }
    }

    /// What answers in an endpoint's place.
    pub(super) fn stand_in(&mut self, stopped: &Stopped) -> Outcome {
        let reason = stopped.reason;
        let policy = self.governor().policy();
        let fallbacks = stopped.on.into_iter().flat_map(|on| fallback::candidates(&policy.fallbacks, on));
        for one in fallbacks {
            let because = self.rule(&format!("fallback {}", one.name), Part::Fallbacks);
            match &one.action {
                FallbackAction::Static(answer) => {
                    let what = format!("responds {} in place of the service", answer.status);
                    self.steps.say(Stage::Fallback, Verdict::Changes, &*what, because);
                    return Outcome {
                        status: Some(answer.status),
                        ..made_up(reason, format!("fallback {} {what}", one.name))
                    };
                }
                FallbackAction::Stale(_) => {
                    let what = "gives the last good response, if one is kept; else the next fallback";
                    self.steps.say(Stage::Fallback, Verdict::Changes, what, because);
                }
            }
        }
        let because = stopped.because.as_ref().map(|because| format!(": {because}")).unwrap_or_default();
        made_up(reason, format!("Sluice responds {} itself: {}{because}", reason.status(), reason.message()))
    }
}
